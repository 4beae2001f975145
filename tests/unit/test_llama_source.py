"""Where models come from."""

from pathlib import Path

import pytest

from app.errors import Misconfigured
from app.llama.source import _parts, locate


def test_a_path_is_taken_as_it_is(tmp_path: Path):
    """Absolute, whatever the current folder."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF rest")
    assert locate(str(file), tmp_path) == file


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("/nowhere/model.gguf", "there is no file /nowhere/model.gguf"),
        ("hf://org/model.gguf", "no address"),
        ("https://example.org/model.gguf", "no address"),
        ("hf://org/repo/model.safetensors", "no address"),
    ],
)
def test_a_model_that_cannot_be_named_stops_the_start(model: str, problem: str, tmp_path: Path):
    """The error quotes what was asked for and says how to write it."""
    with pytest.raises(Misconfigured, match=problem) as caught:
        locate(model, tmp_path)
    assert "hf://org/repo/file.gguf" in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    """Before llama.cpp reads it."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(Misconfigured, match="not a GGUF"):
        locate(str(file), tmp_path)


def test_the_hub_out_of_reach_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Offline, as with HF_HUB_OFFLINE=1, and not downloaded before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Misconfigured, match="cannot be downloaded") as caught:
        locate("hf://org/repo/model.gguf", tmp_path)
    assert "give its path" in str(caught.value)


def test_a_split_model_is_all_its_parts():
    """llama.cpp is given the first and finds the others beside it."""
    assert _parts("q8/model-00001-of-00003.gguf") == [f"q8/model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert _parts("model.gguf") == ["model.gguf"]
