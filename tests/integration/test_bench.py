"""`mindfu bench`: models compared in processes of their own."""

import json
from pathlib import Path

import pytest
from gguf_factory import random_model

from deployments import cli

pytestmark = pytest.mark.integration


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(
        "sys.argv", ["mindfu", "bench", "--tokens", "8", "--threads", "1", "--window", "256", *arguments]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_models_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Every figure of each, and what could not be measured is told and the rest is."""
    model = random_model(tmp_path / "model.gguf")
    assert bench(monkeypatch, "--json", str(model), str(tmp_path / "none.gguf")) == 2
    told = capsys.readouterr()
    (figures,) = json.loads(told.out)
    assert figures.pop("model") == str(model)
    assert all(value > 0 for value in figures.values())
    assert "none.gguf" in told.err


def test_the_table_has_a_line_for_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """For people."""
    model = random_model(tmp_path / "model.gguf")
    assert bench(monkeypatch, str(model)) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert "tok/s" in head
    assert line.startswith(str(model))
