"""Profiles: what a small file changes of another one, and that those which come along can be served."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app

from app.errors import Misconfigured
from app.settings import Secrets, Settings
from app.vllm.settings import VllmSettings
from app.vllm.start import arguments
from benchmarks import vram
from deployments.config import problems
from deployments.graph import build
from deployments.profiles import placed, resolved

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "profiles").glob("*.yaml"))

BASE = """
http_options: {host: 127.0.0.1, port: 11434}
applications:
  - name: mindfu
    import_path: deployments.graph:build
    args: {llm: {model: demo, slots: 8}, rag: {collections: [a, b]}}
    deployments: [{name: Gateway, num_replicas: 1}, {name: LlamaCpp, num_replicas: 1}]
"""


def amount(tmp_path: Path, change: str) -> dict[str, Any]:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "profile.yaml").write_text(f"extends: base.yaml\n{change}")
    return resolved(tmp_path / "profile.yaml")


def test_a_file_that_extends_none_is_what_it_says(tmp_path: Path):
    """So `serve run` may be given it as it is."""
    (tmp_path / "base.yaml").write_text(BASE)
    assert resolved(tmp_path / "base.yaml") == yaml.safe_load(BASE)


def test_what_a_profile_does_not_say_is_as_in_the_other_file(tmp_path: Path):
    """Mappings are merged, however deep."""
    found = amount(tmp_path, "applications: {mindfu: {args: {llm: {slots: 2}}}}")
    assert found["applications"][0]["args"]["llm"] == {"model": "demo", "slots": 2}
    assert found["http_options"] == {"host": "127.0.0.1", "port": 11434}
    assert "extends" not in found


def test_entries_of_a_list_go_by_their_names(tmp_path: Path):
    """One is taken away, one added, one changed; the others stay."""
    change = (
        "applications: {mindfu: {deployments: {LlamaCpp: null, Vllm: {num_replicas: 2}, Gateway: {num_replicas: 3}}}}"
    )
    assert amount(tmp_path, change)["applications"][0]["deployments"] == [
        {"name": "Gateway", "num_replicas": 3},
        {"name": "Vllm", "num_replicas": 2},
    ]


def test_any_other_list_is_replaced(tmp_path: Path):
    """As RFC 7396 says."""
    found = amount(tmp_path, "applications: {mindfu: {args: {rag: {collections: [c]}}}}")
    assert found["applications"][0]["args"]["rag"]["collections"] == ["c"]


def test_a_profile_may_extend_a_profile(tmp_path: Path):
    """Its folder is where the name of the other one begins."""
    amount(tmp_path, "http_options: {port: 1}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "third.yaml").write_text("extends: ../profile.yaml\nhttp_options: {host: localhost}\n")
    assert resolved(tmp_path / "sub" / "third.yaml")["http_options"] == {"host": "localhost", "port": 1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "applications: {mindfu: {deployments: {LlmaCpp: null}}}",
            "deployments.LlmaCpp: there is nothing to take away",
        ),
        ("extends: nowhere.yaml", "nowhere.yaml: it cannot be read"),
        ("extends: profile.yaml", "extend each other: profile.yaml → profile.yaml"),
        ("extends: [base.yaml]", r"extends: is \['base.yaml'\]"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, change: str, told: str):
    """Nothing is guessed, and nothing goes on without what was named."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "profile.yaml").write_text(change if "extends" in change else f"extends: base.yaml\n{change}")
    with pytest.raises(Misconfigured, match=told):
        resolved(tmp_path / "profile.yaml")


def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path):
    """With what it must hold."""
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(Misconfigured, match="must hold a mapping"):
        resolved(tmp_path / "list.yaml")


@pytest.mark.parametrize("profile", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_a_profile_that_comes_along_can_be_served(profile: Path, tmp_path: Path):
    """`mindfu check` has nothing to say, once there is a key where it listens to others."""
    assert problems(profile, Secrets.model_validate({"api_key": "k"}), tmp_path) == []


@pytest.mark.parametrize("profile", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_its_graph_is_built_without_a_gpu_and_without_vllm(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As the head of a cluster builds it. Each deployment that the file places is one of the graph."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path))
    application = resolved(profile)["applications"][0]
    graph = build_app(build(Settings.model_validate(application["args"])), name="mindfu")
    assert {one["name"] for one in application["deployments"]} <= {one.name for one in graph.deployments}
    assert "vllm" not in sys.modules


@pytest.mark.parametrize("url", [None, "http://qdrant:6333"])
def test_a_graph_has_every_part_that_a_served_file_places(url: str | None, monkeypatch: pytest.MonkeyPatch):
    """Serve refuses a file that places another one; with a Qdrant by URL there is no VectorStore."""
    if url:
        monkeypatch.setenv("MINDFU_QDRANT_URL", url)
    config = placed(resolved(ROOT / "serve_config.yaml"), Secrets.from_env())
    application = config["applications"][0]
    graph = build_app(build(Settings.model_validate(application["args"])), name="mindfu")
    names = {one["name"] for one in application["deployments"]}
    assert names <= {one.name for one in graph.deployments}
    assert ("VectorStore" in names) == (url is None)


def test_one_engine_is_placed_where_another_was():
    """A profile for vLLM has no deployment of llama.cpp left, nor one of its settings."""
    application = resolved(ROOT / "profiles" / "vllm.yaml")["applications"][0]
    names = {one["name"] for one in application["deployments"]}
    assert "Vllm" in names
    assert "LlamaCpp" not in names
    assert "gpu_layers" not in application["args"]["llm"]


def test_the_flags_of_the_published_command_are_settings():
    """What `vllm serve` was given for Devstral Small 2, vLLM is given by the profile."""
    llm = vram.settings("vllm")
    assert isinstance(llm, VllmSettings)
    told = arguments(Path("/model"), llm)
    expected = {
        "max_model_len": 81920,
        "gpu_memory_utilization": 0.95,
        "kv_cache_dtype": "fp8",
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
    }
    assert expected.items() <= told.items()
    assert llm.tool_call_parser == "mistral"


def test_the_documentation_tells_what_each_profile_takes():
    """Line by line, as it is computed."""
    told = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8").splitlines()
    assert [profile.stem for profile in SHIPPED if vram.row(profile.stem) not in told] == []


@pytest.mark.parametrize(
    ("profile", "gb"),
    # A card of 16 GB has 17.18 · 10⁹ bytes. Ranges of 4 and 8 bits and AWQ are those that such servers are known for.
    [
        ("gguf", (14.5, 17)),
        ("gguf-24gb", (18, 24)),
        ("vllm", (30, 48)),
        ("vllm-4bit", (10, 12)),
        ("vllm-8bit", (14, 16)),
        ("vllm-awq", (5, 6)),
    ],
)
def test_a_profile_fits_the_gpu_that_it_names(profile: str, gb: tuple[float, float]):
    """And needs more than a smaller one has."""
    least, most = gb
    assert least * vram.GB <= vram.card(vram.settings(profile)) <= most * vram.GB


def test_the_parts_of_a_model_add_up():
    """Devstral in FP8, by hand: 40 layers · 555.7 M weights of a byte, and two tables of 131,072 · 5,120 of two."""
    found = vram.taken(vram.settings("vllm"))
    linear = 40 * (2 * 5120 * 4096 + 2 * 5120 * 1024 + 3 * 5120 * 32_768)
    assert found.weights == pytest.approx(linear + 2 * 131_072 * 5120 * 2, rel=1e-4)
    assert found.cache == 81_920 * 40 * 2 * 8 * 128
