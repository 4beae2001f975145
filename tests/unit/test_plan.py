"""Plans: weights are counted exactly, what takes more costs more, and what cannot be planned for is refused."""

import json
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from deployments import cli_plan
from train.plan import DEVSTRAL, Shape, adapter_weights, plan
from train.recipe import Recipe

TINY = {"vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def test_weights_are_counted_exactly() -> None:
    """100 × 8 twice; per layer 4 × 8 × 8 and 3 × 8 × 16 and two norms of 8; a last norm: 1600 + 2 × 656 + 8 = 2920."""
    assert Shape.of(TINY).parameters() == 2920
    assert Shape.of(TINY | {"tie_word_embeddings": True}).parameters() == 2120


def test_devstral_is_a_model_of_24_billion_weights() -> None:
    """Its text tower has 23.6; rank 32 on seven projections of 40 layers trains 185 million of its own."""
    assert round(DEVSTRAL.parameters() / 1e9, 1) == 23.6
    assert round(adapter_weights(DEVSTRAL, Recipe(preset="devstral-24gb")) / 1e6) == 185


def test_nf4_takes_a_quarter_of_bf16() -> None:
    """Of the linear layers: 0.516 bytes a weight (4 bits, and 0.127 of scales) instead of 2."""
    linear = sum(layer.weights for layer in DEVSTRAL.linear())
    quantised, plain = (plan(DEVSTRAL, Recipe(quantise=way)).weights for way in (True, False))
    assert (plain - quantised) / linear == pytest.approx(2 - 0.5159, abs=1e-3)


def test_what_takes_more_costs_more() -> None:
    """Longer rows, more of them, a higher rank, no checkpointing, all weights."""
    least = plan(DEVSTRAL, Recipe(batch=1, window=1024)).total
    for changes in (
        {"batch": 2},
        {"window": 2048},
        {"rank": 64},
        {"gradient_checkpointing": False},
        {"quantise": False},
        {"preset": "full", "quantise": False},
    ):
        assert plan(DEVSTRAL, Recipe.model_validate({"batch": 1, "window": 1024} | changes)).total > least


def test_a_model_with_a_vision_tower_is_planned_by_its_text() -> None:
    """As Devstral's config.json has it."""
    assert Shape.of({"text_config": TINY, "vision_config": {}}) == Shape.of(TINY)


@pytest.mark.parametrize(
    ("config", "message"),
    [({}, "has no 'num_attention_heads'"), (TINY | {"num_local_experts": 8}, "mixture of experts")],
)
def test_other_kinds_of_models_are_refused(config: dict[str, int], message: str) -> None:
    """Rather than planned for wrongly."""
    with pytest.raises(InvalidRequest, match=message):
        Shape.of(config)


def test_the_command_tells_whether_it_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In words, and by its exit status; for a GGUF, a folder, and names that need no download."""
    assert cli_plan.plan(model="devstral-small-2", gpu=12) == 1
    said = capsys.readouterr().out
    assert "23.57B parameters, a LoRA of rank 16 on NF4 weights" in said
    assert "Does not fit: " in said
    assert cli_plan.plan(gpu=1.5, changes=["window=256"]) == 0
    assert "demo: 2.50M parameters" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert cli_plan.plan(model=str(tmp_path)) == 0
    assert cli_plan.plan(model=str(tmp_path), changes=["rank=0"]) == 2
    assert "tune.rank" in capsys.readouterr().err


def test_the_demo_models_shape_is_read_from_its_file() -> None:
    """2,495,200 parameters, as docs/demo-model.md says."""
    assert cli_plan.shape_of("demo").parameters() == 2_495_200


def test_a_plan_for_programs_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """In bytes; without a GPU nobody says whether it fits."""
    assert cli_plan.plan(as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    parts = {name: size for name, size in told["bytes"].items() if name != "total"}
    assert (told["parameters"], told["fits"]) == (2_495_200, None)
    assert told["bytes"]["total"] == sum(parts.values())
    assert cli_plan.plan(model="devstral-small-2", gpu=12, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["fits"] is False
