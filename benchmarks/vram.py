"""The GPU memory that each profile takes, as docs/profiles.md tells it: `python -m benchmarks.vram`.

It is arithmetic, and no measurement: weights, cache, adapters and what computes, told from the shape of the model. For
llama.cpp it is what start-up itself reckons with (app/llama/memory.py). vLLM measures what it needs to compute, and
takes the rest of its share for the cache; here its cache is that of one conversation as long as the window, without
which it does not start. CUDA graphs are not counted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from app.llama import memory
from app.settings import IMPORT_PATH, LLMSettings, Settings
from app.vllm.settings import VllmSettings
from deployments.profiles import resolved
from train.plan import DEVSTRAL, RUNTIME_BYTES, Shape

GB = 10**9
PROFILES = Path(__file__).parents[1] / "profiles"
BF16 = 2.0  # bytes

NF4 = 0.5 + 4 / 64  # 4 bits, and a scale of 32 bits for 64 weights: bitsandbytes as vLLM reads it
AWQ = 0.5 + 2.5 / 128  # 4 bits, and a scale of 16 and a zero of 4 bits for 128 weights
FP8 = 1.0


class Model(NamedTuple):
    """What is known of a published model. width: bytes of a weight of its linear layers."""

    shape: Shape
    width: float
    file: int | None = None  # bytes of a GGUF


QWEN_8B = Shape(151_936, 4096, 36, 32, 8, 128, 12_288, tied=False)
QWEN_4B = Shape(151_936, 2560, 36, 32, 8, 128, 9728, tied=True)
GGUF = "hf://unsloth/Devstral-Small-2-24B-Instruct-2512-GGUF/Devstral-Small-2-24B-Instruct-2512-Q4_K_M.gguf"
MODELS: Mapping[str, Model] = {
    GGUF: Model(DEVSTRAL, 0, 14_330_000_000),
    "hf://mistralai/Devstral-Small-2-24B-Instruct-2512": Model(DEVSTRAL, FP8),
    "hf://Qwen/Qwen3-8B": Model(QWEN_8B, BF16),
    "hf://Qwen/Qwen3-4B-AWQ": Model(QWEN_4B, AWQ),
}
LOADED = {"bitsandbytes": NF4, "fp8_per_tensor": FP8, "fp8_per_channel": FP8}  # by what is quantised while it loads


class Memory(NamedTuple):
    """Bytes on the GPU."""

    weights: int
    cache: int
    adapters: int
    working: int  # one step, and CUDA with its libraries

    @property
    def total(self) -> int:
        return sum(self)


def taken(llm: LLMSettings | VllmSettings) -> Memory:
    """What a model takes by its settings. KeyError: it is none of MODELS."""
    model = MODELS[llm.model]
    return _vllm(model, llm) if isinstance(llm, VllmSettings) else _llama(model, llm)


def card(llm: LLMSettings | VllmSettings) -> int:
    """Bytes that the GPU must have: what is taken, of which vLLM is given a share."""
    return round(taken(llm).total / (llm.gpu_memory_utilization if isinstance(llm, VllmSettings) else 1.0))


def settings(profile: str) -> LLMSettings | VllmSettings:
    """The model of a profile, by its name."""
    applications = resolved(PROFILES / f"{profile}.yaml")["applications"]
    ours = next(one for one in applications if one["import_path"] == IMPORT_PATH)
    return Settings.model_validate(ours["args"]).llm


def row(profile: str) -> str:
    """A line of the table in docs/profiles.md."""
    llm = settings(profile)
    parts = taken(llm)
    cells = [f"{size / GB:.1f}" for size in (*parts, parts.total, card(llm))]
    return f"| `{profile}` | {' | '.join(cells)} |"


def _vllm(model: Model, llm: VllmSettings) -> Memory:
    shape, linear = model.shape, model.shape.linear()
    width = LOADED.get(llm.quantization or "", model.width)
    quantised = sum(layer.weights for layer in linear)
    weights = quantised * width + (shape.parameters() - quantised) * BF16
    number = 1 if llm.kv_cache_dtype.startswith("fp8") else 2
    cache = 2 * shape.layers * shape.groups * shape.head * number * llm.window
    rank = llm.max_lora_rank * llm.adapters_together if llm.lora else 0
    adapters = sum((layer.inputs + layer.outputs) * layer.copies for layer in linear) * rank * BF16
    rows = llm.batch_tokens or 2048
    step = rows * (4 * shape.width + 3 * shape.hidden) * BF16 + 2 * 4 * llm.slots * shape.vocabulary
    return Memory(round(weights), cache, round(adapters), round(step) + RUNTIME_BYTES)


def _llama(model: Model, llm: LLMSettings) -> Memory:
    shape = model.shape
    told = {
        "block_count": shape.layers,
        "embedding_length": shape.width,
        "feed_forward_length": shape.hidden,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.groups,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "vocab_size": shape.vocabulary,
    }
    metadata = {"general.architecture": "any"} | {f"any.{name}": value for name, value in told.items()}
    assert model.file is not None
    need = memory.needed(metadata, model.file, llm)
    return Memory(need.weights, need.cache, 0, need.buffers + RUNTIME_BYTES)


if __name__ == "__main__":
    for path in sorted(PROFILES.glob("*.yaml")):
        print(row(path.stem))
