"""The diagrams in docs/: each node is code that exists, and each picture is of the source beside it."""

import re
import runpy
from pathlib import Path

import pytest
from ray.serve._private.build_app import build_app

from app.settings import Settings
from deployments.graph import build
from train.pipeline import FLOW, GATHERING

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = sorted(DOCS.glob("*.mmd"))
mark = runpy.run_path(str(DOCS / "render.py"))["mark"]


def test_there_is_one_of_the_whole_and_one_of_each_flow():
    """Architecture, inference, training."""
    assert [source.stem for source in SOURCES] == ["architecture", "inference-flow", "training-flow"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_nodes_name_modules_that_exist(source: Path):
    """So a module that is moved takes its diagram along."""
    named = re.findall(r"\b(?:app|deployments|train)/[a-z_/]+\.py\b", source.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (DOCS.parent / name).is_file()] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_picture_is_of_the_source_beside_it(source: Path):
    """`make diagrams` renders them; labels are text, which every viewer shows."""
    drawn = source.with_suffix(".svg").read_text(encoding="utf-8")
    assert drawn.endswith(mark(source))
    assert "foreignObject" not in drawn


def test_the_architecture_shows_every_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On both engines, with all that is optional."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path))
    optional = {"rag": {"rerank": "m"}, "tools": {"enabled": True}}
    engines = ({}, {"llm": {"engine": "vllm", "model": "/m", "name": "m"}})
    graphs = [build_app(build(Settings.model_validate(optional | engine)), name="mindfu") for engine in engines]
    deployments = {one.name for graph in graphs for one in graph.deployments}
    shown = re.findall(r'^ {4}([A-Z]\w+)\["', (DOCS / "architecture.mmd").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(shown) == deployments


def test_the_training_flow_shows_every_stage():
    """Those of the pipeline, in their order."""
    text = (DOCS / "training-flow.mmd").read_text(encoding="utf-8")
    shown = re.findall(r"^ {2}(\w+)[\[{].*train/\1\.py", text, re.MULTILINE)
    assert [name for name in shown if name != "run"] == [*GATHERING, *FLOW]
