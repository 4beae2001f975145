"""AWQ and the folder for vLLM: what is refused before any work is done, and which options follow from a model."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from app.errors import InvalidRequest, Misconfigured
from train import awq, vllm_folder


def test_an_interpreter_without_llm_compressor_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Before a model is loaded, with what to do."""
    monkeypatch.setattr(awq, "MODULE", "no_such_module")
    with pytest.raises(Misconfigured, match=r"has no llm-compressor.*environment of its own.*formats\.awq_python"):
        awq.present(sys.executable)
    with pytest.raises(Misconfigured, match="does not run"):
        awq.present("/nowhere/python")
    monkeypatch.setattr(awq, "MODULE", "json")
    awq.present(None)


def layers(folder: Path, *widths: int) -> Path:
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": torch.zeros(4, width) for n, width in enumerate(widths)}
    safetensors.torch.save_file(tensors | {"model.norm.weight": torch.zeros(7)}, folder / "model.safetensors")
    return folder


def test_scales_are_shared_by_as_many_columns_as_fit_every_layer(tmp_path: Path):
    """160 and 416 are multiples of 32 alone; 100 of none that vLLM has."""
    assert awq.group(layers(tmp_path, 4096, 11008)) == 128
    assert awq.group(layers(tmp_path, 160, 416)) == 32
    with pytest.raises(InvalidRequest, match=r"the layers have \[100\]"):
        awq.group(layers(tmp_path, 100))


def folder_of(tmp_path: Path, template: str, longest: int = 4096) -> Path:
    config = {"max_position_embeddings": longest, "eos_token_id": 2}
    for name, told in (("config.json", config), ("tokenizer.json", {}), ("tokenizer_config.json", {})):
        (tmp_path / name).write_text(json.dumps(told))
    (tmp_path / "chat_template.jinja").write_text(template)
    return tmp_path


@pytest.mark.parametrize(
    ("template", "parser"), [("… <tool_call> …", "hermes"), ("… [TOOL_CALLS] …", "mistral"), ("{{ messages }}", None)]
)
def test_vllm_is_told_how_the_model_calls_tools(tmp_path: Path, template: str, parser: str | None):
    """As its template writes them; and where an answer ends."""
    folder = folder_of(tmp_path, template)
    vllm_folder.complete(folder, "mine", None)
    told = yaml.safe_load((folder / vllm_folder.SETTINGS).read_text())
    assert (told["served-model-name"], told["max-model-len"], told.get("tool-call-parser")) == ("mine", 4096, parser)
    assert json.loads((folder / vllm_folder.GENERATION).read_text()) == {"eos_token_id": 2}


def test_a_window_is_never_longer_than_the_model(tmp_path: Path):
    """And a folder without a tokenizer is no model that vLLM could serve."""
    folder = folder_of(tmp_path, "")
    assert vllm_folder.settings(folder, "m", 1000)["max-model-len"] == 1000
    assert vllm_folder.settings(folder, "m", 99999)["max-model-len"] == 4096
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InvalidRequest, match=r"has no tokenizer\.json"):
        vllm_folder.complete(folder, "m", None)
