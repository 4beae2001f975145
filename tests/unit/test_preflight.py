"""What a machine lacks is said before anything is downloaded."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import Misconfigured
from app.settings import IMPORT_PATH
from deployments.preflight import require, wants
from deployments.profiles import resolved

ROOT = Path(__file__).parents[2]
LAPTOP = {"CPU": 2.0}
HOME = {"CPU": 8.0, "GPU": 1.0}


def config(profile: str) -> dict[str, Any]:
    return resolved(ROOT / profile)


def test_the_default_needs_two_cpus_and_nothing_else():
    """As its first lines promise."""
    assert wants(config("serve_config.yaml")) == {"CPU": pytest.approx(2.0)}
    require(config("serve_config.yaml"), LAPTOP)


@pytest.mark.parametrize(
    ("profile", "has", "told"),
    [
        (
            "profiles/gguf.yaml",
            {"CPU": 8.0},
            r"they ask for 1 GPU\(s\) \(Ray has 0\), more than this machine has. .*mindfu doctor",
        ),
        ("profiles/gguf.yaml", LAPTOP | {"GPU": 1.0}, r"they ask for 3.1 CPUs \(Ray has 2\)"),
        ("profiles/gguf.yaml", LAPTOP, r"for 1 GPU\(s\) \(Ray has 0\) and 3.1 CPUs \(Ray has 2\)"),
        ("profiles/gguf.yaml", HOME, "llm.gpu_layers: is -1, and this llama.cpp is built for CPUs.*GGML_CUDA=on"),
        ("profiles/vllm.yaml", HOME, "llm.engine: is vllm, which is not installed.*--extra vllm"),
        ("profiles/hybrid.yaml", HOME, r"7 of the resource 'head' \(Ray has 0\).*RAY_ADDRESS=auto"),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(profile: str, has: dict[str, float], told: str):
    """With both numbers and the remedy. The tests' llama.cpp is built for CPUs, and they have no vLLM."""
    with pytest.raises(Misconfigured, match=told):
        require(config(profile), has)


def test_replicas_count_as_many_as_they_start_with():
    """Those that come later wait for room."""
    placed = [
        {"name": "a", "num_replicas": 2, "ray_actor_options": {"num_cpus": 3}},
        {
            "name": "b",
            "autoscaling_config": {"min_replicas": 0, "max_replicas": 9},
            "ray_actor_options": {"num_gpus": 1},
        },
        {"name": "c", "num_replicas": "auto", "ray_actor_options": {"num_gpus": 0.5}},
        {"name": "d"},
    ]
    assert wants({"applications": [{"import_path": "x:y", "deployments": placed}]}) == {"CPU": 6, "GPU": 0.5}


def test_a_chat_template_that_is_no_jinja_is_told_before_anything_starts(tmp_path: Path):
    """Not at the first request for a further model."""
    (tmp_path / "bad.jinja").write_text("{% if %}")
    models = {"b": {"model": "demo", "chat_template": str(tmp_path / "bad.jinja")}}
    applications = [{"import_path": IMPORT_PATH, "args": {"llm": {"models": models}}, "deployments": []}]
    with pytest.raises(Misconfigured, match=r"llm\.chat_template: its chat template is no Jinja"):
        require({"applications": applications}, {"CPU": 2})


@pytest.mark.parametrize(
    "llm", [{"chat_template": "/no.jinja"}, {"models": {"b": {"model": "demo", "chat_template": "/no.jinja"}}}]
)
def test_a_chat_template_that_is_not_there_is_named_before_anything_starts(llm: dict[str, object]):
    """Of every model that is served."""
    applications = [{"import_path": IMPORT_PATH, "args": {"llm": llm}, "deployments": []}]
    with pytest.raises(Misconfigured, match=r"/no\.jinja cannot be read"):
        require({"applications": applications}, {"CPU": 2})
