"""Starting vLLM: its arguments out of our settings, and in one sentence why it does not start.

llm = start(folder, settings)      # vllm.v1.engine.async_llm.AsyncLLM, whose engine is a process of its own
"""

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.errors import Misconfigured
from app.vllm import memory
from app.vllm.settings import VllmSettings
from app.vllm.source import INSTALL

RESIDENT = 4  # champion, previous, staged, and one on trial
SPARE = 4  # places of adapters that are going, and an empty one
PRIVATE = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}  # vLLM tells its makers of every start otherwise
LONGEST = 300  # characters of a reason
FRAME = re.compile(r"^\d+ validation errors? for \w+ Value error, ")  # pydantic's
SENTENCES = re.compile(r"(?<=[a-z0-9)\]`])\. (?=[A-Z])")


def arguments(folder: Path, settings: VllmSettings, *, cpu: bool = False) -> dict[str, Any]:
    """What AsyncEngineArgs is made with. Every setting of ours is in it, or in what is made of tokens here.

    cpu: for vLLM's kernels for CPUs. They read the adapter of an answer that has none from the last place, which must
    be empty therefore (`bgmv_expand` of 0.29 takes index -1 from the end): there are more places than adapters.
    """
    parallel, loaded = settings.tensor_parallel_size, RESIDENT + settings.adapters
    together = max(settings.adapters_together, loaded + SPARE if cpu else 1)
    lora = {
        "enable_lora": True,
        "max_loras": together,
        "max_cpu_loras": max(together, loaded),
        "max_lora_rank": settings.max_lora_rank,
    }
    return {
        "model": str(folder),
        "served_model_name": settings.name,
        "config_format": "hf",  # vLLM would take Mistral's own files first where both are there, and read other tokens
        "tokenizer_mode": "hf",
        "load_format": "auto" if settings.quantization == "bitsandbytes" else "safetensors",
        "max_model_len": settings.window,
        "max_num_seqs": settings.slots,
        "max_num_batched_tokens": settings.batch_tokens,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_prefix_caching": settings.prefix_caching,
        "enable_chunked_prefill": settings.chunked_prefill,
        "tensor_parallel_size": parallel,
        "distributed_executor_backend": "mp" if parallel > 1 else None,  # processes of this replica, on its GPUs
        "enforce_eager": settings.enforce_eager,
        "generation_config": "vllm",  # what requests leave out has the contract's defaults, not the model's
        "language_model_only": True,  # of a model that sees, too: no memory for pictures, which no request has
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": 20,
        "disable_log_stats": True,
        **(lora if settings.lora else {}),
    }


def start(folder: Path, settings: VllmSettings, stats: Callable[..., Any]) -> Any:
    """An AsyncLLM. stats: makes its StatLogger. Raises Misconfigured with the remedy."""
    require_vllm()
    os.environ.update(PRIVATE)
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    gpus = _gpus()
    memory.check(folder, settings, gpus)
    try:
        grammars = StructuredOutputsConfig(backend="xgrammar")  # whose dialect we write: no other one is to try
        told = AsyncEngineArgs(**arguments(folder, settings, cpu=not gpus), structured_outputs_config=grammars)
        return AsyncLLM.from_engine_args(told, stat_loggers=[stats])
    except Exception as error:  # vLLM raises whatever it meets: KeyError of an architecture, RuntimeError of CUDA
        raise Misconfigured("llm", f"vLLM does not start with {folder}: {reason(error)}", REMEDY) from error


REMEDY = "Correct the settings; what its engine met, if it got so far, stands above in the log of this replica."


def require_vllm() -> None:
    """Raise Misconfigured where it is not installed."""
    if find_spec("vllm") is None:
        problem = "is vllm, which is not installed on this machine"
        raise Misconfigured("llm.engine", problem, f"Run `{INSTALL}` there, or use engine: llama_cpp.")


def reason(error: BaseException) -> str:
    """The first sentence of what vLLM says, without the advice for its own command line."""
    said = FRAME.sub("", " ".join(str(error).split())).split(" [type=")[0] or type(error).__name__
    first = SENTENCES.split(said)[0]
    return (first if len(first) <= LONGEST else f"{first[:LONGEST]}…").rstrip(".")


def _gpus() -> list[int]:
    """The bytes of each GPU that this process sees; none where vLLM is built for CPUs. Raises Misconfigured."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return []
    if not current_platform.device_type:
        problem = "is vllm, which sees no GPU in this replica"
        remedy = "Give the Vllm deployment ray_actor_options.num_gpus: 1, on a machine with an NVIDIA driver."
        raise Misconfigured("llm.engine", problem, remedy)
    return [current_platform.get_device_total_memory(at) for at in range(current_platform.device_count())]
