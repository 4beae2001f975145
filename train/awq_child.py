"""AWQ by llm-compressor, in an interpreter of its own: it pins a transformers that training need not have.

    <python with llmcompressor> train/awq_child.py JOB.json

Nothing of ours is imported. JOB: {"model": folder, "out": folder, "texts": [[token, …], …], "lessons": [[token, …],
…], "group": columns of a scale}. Writes the quantised folder, loads it back, and prints one line of JSON: the
log-probability of each token of each lesson after those before it.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> list[list[float]]:
    """Quantise, save, load back, score."""
    import torch
    import transformers
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    gpu = torch.cuda.is_available()
    if not gpu:  # llm-compressor 0.14 pins memory whatever the machine, and PyTorch refuses where there is no GPU
        IntermediatesCache.pin_memory = lambda *_args, **_named: None
    dtype = torch.bfloat16 if gpu else torch.float32
    place = {"device_map": "cuda"} if gpu else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, **place)
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=False, strategy=QuantizationStrategy.GROUP, group_size=job["group"]
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    texts = [{"input_ids": text, "attention_mask": [1] * len(text)} for text in job["texts"]]
    oneshot(
        model=model,
        dataset=Dataset.from_list(texts),
        recipe=[AWQModifier(), QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])],
        max_seq_length=max(map(len, job["texts"])),
        num_calibration_samples=len(texts),
    )
    model.save_pretrained(job["out"], save_compressed=True)
    del model
    read = transformers.AutoModelForCausalLM.from_pretrained(job["out"], dtype=dtype, **place).eval()
    return [scored(read, lesson) for lesson in job["lessons"]]


def scored(model: Any, tokens: list[int]) -> list[float]:
    """Of every token but the first."""
    import torch

    ids = torch.tensor([tokens], device=model.device)
    with torch.no_grad():
        likely = model(ids).logits[0, :-1].float().log_softmax(-1)
    found: list[float] = likely.gather(1, ids[0, 1:, None])[:, 0].tolist()
    return found


if __name__ == "__main__":
    said = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(said), flush=True)
