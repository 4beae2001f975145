"""Stage 5 of the demo model: write the shipped GGUF, and the safetensors that fine-tuning starts from.

    python -m train.demo_export --out .mindfu/demo --gguf app/demo/mindfu-demo.gguf     a checkpoint → GGUF
    python -m train.demo_export … --start older.gguf --share 0.9                        nine tenths of the way
    python -m train.demo_export --restore .mindfu/demo/hf                               the shipped GGUF → safetensors

The restored folder loads with transformers' `from_pretrained`. Its weights are the served ones, Q8_0 rounding included.
"""

import argparse
import json
from pathlib import Path

import safetensors.torch
import torch

from train import chat, gguf_export, tokenizer
from train.gguf_export import Card
from train.model import Llama, Shape

SHIPPED = Path(__file__).parent.parent / "app" / "demo" / "mindfu-demo.gguf"
CARD = Card(
    name="mindfu-demo",
    description="MindFu's small demo model: quotes the sentence of its sources that answers, or declines.",
    licence="Apache-2.0",
    template=chat.TEMPLATE,
)


def export(out: Path, target: Path, start: Path | None = None, share: float = 1.0) -> None:
    """Write the GGUF of out/checkpoint.pt with out/tokenizer.json.

    start: the GGUF that training went on from; of the way from it the weights go a share (WiSE-FT, arXiv:2109.01903).
    """
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    weights = state["network"]
    if start:
        before = gguf_export.read(start).weights
        weights = {name: torch.lerp(before[name], weight, share) for name, weight in weights.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    gguf_export.write(
        target,
        weights,
        shape=Shape(**state["shape"]),
        tokenizer=tokenizer.load(out / "tokenizer.json"),
        card=CARD,
    )


def restore(source: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files, as transformers reads them."""
    loaded = gguf_export.read(source)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(loaded.weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(loaded.shape), indent=1) + "\n", encoding="utf-8")
    loaded.tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": tokenizer.END_OF_TEXT, "eos_token": tokenizer.TURN_END, "pad_token": tokenizer.END_OF_TEXT}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": loaded.shape.window, **names}
    described["chat_template"] = loaded.card.template
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def config(shape: Shape) -> dict[str, object]:
    """The LlamaConfig of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.window,
        "rms_norm_eps": shape.epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def trained(source: Path) -> Llama:
    """The network of a GGUF, in plain PyTorch."""
    loaded = gguf_export.read(source)
    network = Llama(loaded.shape)
    network.load_state_dict(loaded.weights)
    return network.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".mindfu/demo"))
    parser.add_argument("--gguf", type=Path, default=SHIPPED)
    parser.add_argument("--start", type=Path, help="the GGUF that training went on from")
    parser.add_argument("--share", type=float, default=1.0, help="of the way from --start to the checkpoint")
    parser.add_argument("--restore", type=Path, help="folder for the safetensors of --gguf")
    options = parser.parse_args()
    if options.restore:
        restore(options.gguf, options.restore)
    elif not 0 <= options.share <= 1:
        parser.error(f"--share is {options.share}, it goes from 0 to 1")
    elif options.share != 1.0 and not options.start:
        parser.error("--share is of the way from --start, which is not given")
    else:
        export(options.out, options.gguf, options.start, options.share)
