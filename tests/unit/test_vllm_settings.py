"""What may be set of a model on vLLM."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import LLMSettings, Secrets, Settings
from app.vllm.settings import VllmSettings
from deployments.config import problems

VLLM = {"engine": "vllm", "model": "/models/m", "name": "m"}
CONFIG = """
http_options: {host: 127.0.0.1}
applications:
  - import_path: deployments.graph:build
    args: {llm: {engine: vllm, model: /models/m, name: m%s}}
"""


def lint(tmp_path: Path, more: str = "", deployments: str = "") -> list[str]:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG % more + (f"    deployments: [{deployments}]\n" if deployments else ""))
    return problems(file, Secrets(), tmp_path)


def test_the_engine_is_a_setting():
    """llama.cpp where nothing is said; both survive the way to a replica."""
    assert isinstance(Settings().llm, LLMSettings)
    chosen = pickle.loads(pickle.dumps(Settings.model_validate({"llm": VLLM})))
    assert isinstance(chosen.llm, VllmSettings)
    assert Settings.model_validate(chosen.model_dump(mode="json")) == chosen


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"engine": "sglang"}, "must be llama_cpp, the default, or vllm"),
        (VLLM | {"gpu_layers": 3}, "Extra inputs"),
        ({"engine": "vllm", "name": "m"}, "Field required"),
        (VLLM | {"batch_tokens": 32, "slots": 64}, "batch_tokens is 32, it must not be below slots: 64"),
        (
            VLLM | {"batch_tokens": 512, "window": 1024, "chunked_prefill": False},
            "without chunked_prefill, window: 1024",
        ),
        (VLLM | {"aliases": ("m",)}, "must be different"),
        (VLLM | {"kv_cache_dtype": "q8_0"}, "Input should be"),
        (VLLM | {"gpu_memory_utilization": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], named: str):
    """Each with what it must be."""
    with pytest.raises(ValidationError, match=named):
        Settings.model_validate({"llm": wrong})


def test_a_configuration_for_vllm_is_clean(tmp_path: Path):
    """On one GPU, on two, and on a vLLM that is built for CPUs."""
    assert lint(tmp_path) == []
    assert lint(tmp_path, deployments="{name: Vllm, ray_actor_options: {num_gpus: 1}}") == []
    two = "{name: Vllm, ray_actor_options: {num_gpus: 2}}"
    assert lint(tmp_path, ", tensor_parallel_size: 2", two) == []


@pytest.mark.parametrize(
    ("more", "deployments", "named"),
    [
        (", windw: 512", "", "args.llm.windw: unknown setting; did you mean 'window'?"),
        (", window: 5", "", "args.llm.window"),
        ("", "{name: LlamaCpp}", "engine is vllm, whose deployment is called Vllm"),
        (", tensor_parallel_size: 2", "{name: Vllm, ray_actor_options: {num_gpus: 1}}", "must be the same"),
        (", tensor_parallel_size: 2", "", "num_gpus is 0, tensor_parallel_size is 2"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, more: str, deployments: str, named: str):
    """As for the other engine, and without the engine's name in the place."""
    found = lint(tmp_path, more, deployments)
    assert len(found) == 1
    assert named in found[0]
