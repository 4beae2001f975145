"""Which GPUs a model goes to, on machines that have some and on one that has none."""

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one
import pytest

from app.errors import Misconfigured
from app.llama.devices import Gpu, chosen, gpus, place
from app.settings import LLMSettings

TWO = [Gpu(0, 1000, "first", 8), Gpu(1, 2000, "second", 24)]
PAIR = {"model": "pair.gguf", "gpus": [0, 1], "gpu_split": [1, 3]}


def settings(**fields: object) -> LLMSettings:
    return LLMSettings.model_validate({"gpu_layers": -1} | fields)


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({}, [0, 1]),
        ({"gpus": [1]}, [1]),
        ({"gpus": [1, 0]}, [1, 0]),
        ({"gpu_layers": 0}, []),
        ({"gpu_layers": 3}, [0, 1]),
    ],
)
def test_a_model_goes_where_its_settings_say(fields: dict[str, object], numbers: list[int]):
    """All GPUs where they name none; no GPU without layers on one."""
    assert [gpu.number for gpu in chosen(settings(**fields), TWO)] == numbers


def test_several_models_have_a_gpu_each():
    """As serve_config.yaml says it: one replica with num_gpus: 2, each model pinned to one of them, or on none."""
    code, small = {"model": "c.gguf", "gpus": [1]}, {"model": "s.gguf", "gpu_layers": 0}
    models = {"code": code, "small": small, "same": {"model": "t.gguf"}, "pair": PAIR}
    llm = settings(gpus=[0], models=models)
    placed = {name: [gpu.name for gpu in chosen(llm.of(name), TWO)] for name in (llm.name, *llm.models)}
    assert placed == {
        "mindfu-demo": ["first"], "code": ["second"], "small": [], "same": ["first"], "pair": ["first", "second"],
    }  # fmt: skip


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are():
    """And with the remedy."""
    with pytest.raises(Misconfigured, match=r"names GPU 2; this replica sees 2: 0 \(first\), 1 \(second\).*num_gpus"):
        chosen(settings(gpus=[0, 2]), TWO)


def test_layers_on_a_gpu_where_there_is_none_are_refused_with_the_remedy():
    """A build without GPUs, or a replica that was given none."""
    with pytest.raises(Misconfigured, match=r"gpu_layers: is -1.*no GPU.*CMAKE_ARGS=-DGGML_CUDA=on.*num_gpus"):
        chosen(settings(), [])


def test_llama_cpp_is_told_the_place():
    """One GPU holds all of it; several get their shares, of layers or of rows."""
    params = C.llama_model_default_params()
    kept = place(params, TWO[1:], settings(gpus=[1]))
    assert (params.n_gpu_layers, params.split_mode, params.devices) == (
        -1,
        C.LLAMA_SPLIT_MODE_NONE,
        C.ctypes.addressof(kept[0]),
    )
    assert list(kept[0]) == [2000, None]
    kept = place(params, TWO, settings(gpus=[0, 1], gpu_split=[1, 3], gpu_split_mode="row"))
    assert (params.split_mode, params.main_gpu, params.tensor_split[:3]) == (C.LLAMA_SPLIT_MODE_ROW, 0, [1.0, 3.0, 0.0])
    params = C.llama_model_default_params()
    assert place(params, [], LLMSettings()) == []
    assert (params.n_gpu_layers, params.devices) == (0, None)


def test_the_processor_is_no_gpu():
    """Although ggml lists it among its devices."""
    assert all(gpu.free > 0 and gpu.name for gpu in gpus())
