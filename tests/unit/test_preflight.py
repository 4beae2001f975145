"""What a machine lacks is said before anything is downloaded."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import Misconfigured
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
