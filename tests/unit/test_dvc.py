"""The pipeline of dvc.yaml is the learning loop's: its stages, parameters and files are there."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MADE = {out for stage in STAGES.values() for out in stage["outs"]}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_a_module_on_what_earlier_ones_made(name: str) -> None:
    """Its inputs are its dependencies, its output is tracked, and its parameters stand in params.yaml."""
    stage = STAGES[name]
    _, _, module, *options = shlex.split(stage["cmd"])
    assert find_spec(module)
    inputs = [value.partition("=")[2] for key, value in zip(options[::2], options[1::2], strict=True) if "in" in key]
    assert set(inputs) <= set(stage["deps"])
    assert options[-2:] == ["--out", *stage["outs"]]
    assert set(stage["params"]) <= set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    for file in stage["deps"]:
        assert file in MADE or (ROOT / file).exists(), file


def test_nothing_is_made_twice_and_nothing_waits_for_itself() -> None:
    """The graph has an order."""
    done: set[str] = set()
    left = dict(STAGES)
    assert len(MADE) == len(STAGES)
    while left:
        ready = [name for name, stage in left.items() if not (MADE & set(stage["deps"])) - done]
        assert ready, left
        done |= {out for name in ready for out in left.pop(name)["outs"]}
