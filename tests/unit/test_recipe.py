"""Recipes: the defaults are QLoRA's, presets are presets, and contradictions are refused."""

import pytest
from pydantic import ValidationError

from train.recipe import PROJECTIONS, Adapter, Recipe
from train.tune import gpus_wanted


def test_the_default_is_qlora_on_all_linear_layers() -> None:
    """Rank 16, alpha 32, NF4, 16 rows a step."""
    recipe = Recipe()
    assert recipe.adapter == Adapter(rank=16, alpha=32, targets="all-linear")
    assert recipe.quantise
    assert recipe.batch * recipe.accumulation == 16
    assert recipe.rate == 2e-4


def test_the_devstral_preset_has_rank_32_on_seven_projections() -> None:
    """And single numbers of it can be changed."""
    assert Recipe(preset="devstral-24gb").adapter == Adapter(rank=32, alpha=64, targets=PROJECTIONS)
    changed = Adapter(rank=8, alpha=64, targets=PROJECTIONS, dropout=0.1)
    assert Recipe(preset="devstral-24gb", rank=8, dropout=0.1).adapter == changed


def test_workers_that_ask_for_a_training_node_ask_for_its_gpu() -> None:
    """Which a cluster that is scaled to zero does not have yet; what is said outright wins."""
    node, nothing = {"train": 1.0}, {"CPU": 8.0}
    assert gpus_wanted(Recipe(resources=node), nothing)
    assert not gpus_wanted(Recipe(resources=node, gpu=False), nothing)
    assert not gpus_wanted(Recipe(), nothing)
    assert not gpus_wanted(Recipe(workers=2), {"GPU": 1.0})
    assert gpus_wanted(Recipe(workers=2), {"GPU": 2.0})


def test_rates_depend_on_what_is_trained() -> None:
    """All weights and preferences want smaller steps; one's own number wins."""
    assert Recipe(preset="full", quantise=False).rate == 1e-5
    assert Recipe(method="dpo").rate == 5e-6
    assert Recipe(method="dpo", learning_rate=1e-3).rate == 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "full"}, "which a quantised base has not"),
        ({"preset": "full", "quantise": False, "rank": 8}, "are of adapters"),
        ({"preset": "full", "quantise": False, "dropout": 0.1}, "are of adapters"),
        ({"dropout": 1.0}, "less than 1"),
        ({"accelerator": "unsloth", "method": "dpo"}, "supervised tuning of adapters"),
        ({"accelerator": "unsloth"}, "packing: false"),
        ({"rehearse": "known.jsonl", "method": "dpo"}, "preferences are not rehearsed"),
        ({"rehearsed": 1.0}, "less than 1"),
        ({"rehearsed": 0.5}, "rehearse names none"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"ranks": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(wrong)
