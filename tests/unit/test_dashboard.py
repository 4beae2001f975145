"""The Grafana dashboard asks for what there is."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from app.llama.steps import Stats
from deployments import metrics
from deployments.metrics import Metrics

DASHBOARD = json.loads((Path(metrics.__file__).parent / "dashboards" / "mindfu.json").read_text())
ELSEWHERE = {  # readings of other parts
    "librarian_documents", "librarian_chunks", "librarian_failures", "engine_adapter", "adapter_replicas",
    "spooled_turns", "training_running", "training_stage_done", *(f"engine_{field.name}" for field in fields(Stats)),
}  # fmt: skip
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}


def known() -> set[str]:
    """Every metric, as Prometheus names it."""
    ends = {"counter": "_total", "histogram": "_bucket"}
    own = {f"{family.name.removeprefix('mindfu_')}{ends[family.type]}" for family in Metrics().registry.collect()}
    return ELSEWHERE | own


@pytest.mark.parametrize("title", PANELS)
def test_a_panel_asks_for_metrics_that_there_are(title: str):
    """Under either source: Ray's names, or those of a gateway's page."""
    asked = [
        name
        for target in PANELS[title]["targets"]
        for name in re.findall(r"(?:\$\{source\}|mindfu)_(\w+)", target["expr"])
    ]
    assert asked
    assert set(asked) <= known()


def test_the_sources_are_rays_names_and_our_own():
    """What `source` may be stands before every name."""
    (source,) = [variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "source"]
    assert [option["value"] for option in source["options"]] == ["ray_mindfu", "mindfu"]
