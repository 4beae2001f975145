"""The GPUs that llama.cpp sees, and which of them a model goes to. A replica sees those that Ray gave it, from 0 on.

ggml's list of devices, for which llama-cpp-python has no names.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one

from app.errors import Misconfigured
from app.settings import LLMSettings

GPU, INTEGRATED = 1, 2  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU
MOST = 16  # llama_max_devices() of a build with GPUs
REMEDY = (
    "Set it to 0; or build llama.cpp for your GPU (PIP_NO_CACHE_DIR=1 CMAKE_ARGS=-DGGML_CUDA=on make clean serve) and "
    "give the LlamaCpp deployment one with num_gpus in serve_config.yaml."
)


class Gpu(NamedTuple):
    """One of them. handle: ggml's; free, total: bytes."""

    number: int
    handle: int
    name: str
    free: int
    total: int = 0


def gpus() -> list[Gpu]:
    """All of them. Empty where this llama.cpp was built without, or Ray gave none."""
    library, found = _ggml(), list[Gpu]()
    for place in range(library.ggml_backend_dev_count()):
        device = library.ggml_backend_dev_get(place)
        if library.ggml_backend_dev_type(device) in (GPU, INTEGRATED):
            left, total = C.ctypes.c_size_t(), C.ctypes.c_size_t()
            library.ggml_backend_dev_memory(device, C.ctypes.byref(left), C.ctypes.byref(total))
            name = library.ggml_backend_dev_description(device).decode(errors="replace")
            found.append(Gpu(len(found), device, name, left.value, total.value))
    return found


def chosen(settings: LLMSettings, seen: Sequence[Gpu] | None = None) -> list[Gpu]:
    """Those that a model's layers go to, in the order of its settings; none where it has no layers on GPUs.

    seen: what there is; None asks llama.cpp. Raises Misconfigured where the settings name what is not there.
    """
    if not settings.gpu_layers:
        return []
    seen = gpus() if seen is None else seen
    if not seen:
        problem = f"is {settings.gpu_layers}, but this llama.cpp has no GPU support, or this replica was given no GPU"
        raise Misconfigured("llm.gpu_layers", problem, REMEDY)
    wanted = tuple(range(len(seen))) if settings.gpus is None else settings.gpus
    if missing := [number for number in wanted if number >= len(seen)]:
        names = ", ".join(f"{gpu.number} ({gpu.name})" for gpu in seen)
        problem = f"names GPU {missing[0]}; this replica sees {len(seen)}: {names}"
        raise Misconfigured("llm.gpus", problem, "Name one of these, or raise num_gpus in serve_config.yaml.")
    if len(wanted) > MOST:
        raise Misconfigured("llm.gpus", f"are {len(wanted)}, llama.cpp uses {MOST} at most", "Name fewer.")
    return [seen[number] for number in wanted]


def place(params: C.llama_model_params, on: Sequence[Gpu], settings: LLMSettings) -> list[Any]:
    """Write a model's place into its parameters. Returns what must live as long as those."""
    params.n_gpu_layers = settings.gpu_layers
    if not on:
        return []
    handles = (C.ctypes.c_void_p * (len(on) + 1))(*(gpu.handle for gpu in on), None)
    params.devices = C.ctypes.cast(handles, C.ctypes.c_void_p)
    params.main_gpu = 0  # of these
    modes = {"layer": C.LLAMA_SPLIT_MODE_LAYER, "row": C.LLAMA_SPLIT_MODE_ROW}
    params.split_mode = modes[settings.gpu_split_mode] if len(on) > 1 else C.LLAMA_SPLIT_MODE_NONE
    if settings.gpu_split is None:
        return [handles]
    shares = (C.ctypes.c_float * MOST)(*settings.gpu_split)
    params.tensor_split = C.ctypes.cast(shares, C.ctypes.POINTER(C.ctypes.c_float))
    return [handles, shares]


@cache
def _ggml() -> Any:
    C.llama_backend_init()
    library, pointer, size = C._lib, C.ctypes.c_void_p, C.ctypes.c_size_t  # noqa: SLF001 — ggml comes with llama.cpp
    library.ggml_backend_dev_count.restype = size
    library.ggml_backend_dev_get.argtypes, library.ggml_backend_dev_get.restype = [size], pointer
    library.ggml_backend_dev_type.argtypes, library.ggml_backend_dev_type.restype = [pointer], C.ctypes.c_int
    library.ggml_backend_dev_description.argtypes = [pointer]
    library.ggml_backend_dev_description.restype = C.ctypes.c_char_p
    library.ggml_backend_dev_memory.argtypes = [pointer, C.ctypes.POINTER(size), C.ctypes.POINTER(size)]
    library.ggml_backend_dev_memory.restype = None
    return library
