"""What a model takes of the GPUs, told from its folder before vLLM starts: minutes before vLLM itself would say so.

Weights are the size of their files, or what quantising while loading makes of it; the cache is that of one sequence as
long as the window, without which vLLM does not start. Working buffers and CUDA graphs come on top, so a model that
passes may still be refused by vLLM, and one that does not pass never fits.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import Misconfigured
from app.vllm.settings import Quantization, VllmSettings
from app.vllm.source import weights_bytes

SHARES: dict[Quantization, float] = {"bitsandbytes": 0.3, "fp8_per_tensor": 0.55, "fp8_per_channel": 0.55}
"""Of 16-bit weights, what quantising while loading leaves: 4 and 8 bits, scales, and what stays as it is."""
GB = 10**9


class Need(NamedTuple):
    """Bytes over all GPUs."""

    weights: int
    cache: int  # of one sequence

    def __str__(self) -> str:
        total, weights, cache = (f"{size / GB:.1f} GB" for size in (sum(self), self.weights, self.cache))
        return f"{total} ({weights} weights, {cache} cache of one sequence)"


def need(folder: Path, settings: VllmSettings) -> Need:
    """What a model takes at least."""
    written: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape: dict[str, Any] = written.get("text_config") or written
    share = SHARES.get(settings.quantization, 1.0) if settings.quantization else 1.0
    heads = int(shape["num_attention_heads"])
    kv_heads = int(shape.get("num_key_value_heads") or heads)
    length = int(shape.get("head_dim") or int(shape["hidden_size"]) // heads)
    number = 1 if settings.kv_cache_dtype.startswith("fp8") else 4 if settings.dtype == "float32" else 2
    cache = 2 * int(shape["num_hidden_layers"]) * kv_heads * length * number * settings.window
    return Need(int(weights_bytes(folder) * share), cache)


def check(folder: Path, settings: VllmSettings, gpus: Sequence[int]) -> None:
    """Raise Misconfigured where a model cannot fit. gpus: the bytes of each GPU that this replica sees; none: a CPU."""
    if not gpus:
        return
    wanted, count = need(folder, settings), settings.tensor_parallel_size
    if len(gpus) < count:
        problem = f"is {count}, and this replica sees {len(gpus)} GPU(s)"
        remedy = f"Give the Vllm deployment ray_actor_options.num_gpus: {count}, on a machine that has as many."
        raise Misconfigured("llm.tensor_parallel_size", problem, remedy)
    least, share = min(gpus[:count]), settings.gpu_memory_utilization
    given = least * share * count
    if sum(wanted) > given:
        problem = (
            f"the model takes at least {wanted}, and {count} GPU(s) of {least / GB:.1f} GB give {given / GB:.1f} GB "
            f"at gpu_memory_utilization {share}"
        )
        remedy = (
            "Lower window, set kv_cache_dtype: fp8 or quantization, raise tensor_parallel_size, or use a larger GPU."
        )
        raise Misconfigured("llm.model", problem, remedy)
