"""Serving lends its GPUs to training, and gets them back whatever becomes of the run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import asyncpg
import pytest

from app.desired import Desired
from app.errors import Conflict
from app.following import Follower
from app.lending import LENT, give_back, left_over, lend, lent_to
from app.registry import Holding, Holdings, Registry
from app.runs import Order, Runs
from app.steering import place
from train import run as working
from train.pipeline import Step
from train.recipe import Recipe

pytestmark = pytest.mark.integration


class Engine:
    """Follows the desired state as a replica does: main has layers on GPUs, small has none. stays: it cannot go."""

    def __init__(self) -> None:
        self.layers = {"main": 40, "small": 0}
        self.stays = False

    async def converge(self, desired: Desired) -> Holdings:
        refused = ""
        for model, layers in desired.control.layers.items():
            if self.stays and layers == 0:
                refused = "it does not fit into memory"
            else:
                self.layers[model] = layers
        return {model: Holding(layers=layers, refused=refused) for model, layers in self.layers.items()}


@pytest.fixture
async def registry(pool: asyncpg.Pool, tmp_path: Path) -> Registry:
    return Registry(pool, tmp_path)


@pytest.fixture
async def engine(registry: Registry) -> AsyncIterator[Engine]:
    made = Engine()
    follower = Follower("engine", registry, made.converge, poll_s=0.1)
    await follower.start()
    yield made
    await follower.close()


async def test_models_leave_the_gpus_and_come_back(registry: Registry, engine: Engine):
    """Those that are there, with as many layers as before."""
    lent = await lend(registry)
    assert lent == {"main": 40}
    assert engine.layers == {"main": 0, "small": 0}
    await give_back(registry, lent)
    assert engine.layers == {"main": 40, "small": 0}


async def test_an_engine_that_cannot_do_without_keeps_its_gpus(registry: Registry, engine: Engine):
    """Nothing has changed then."""
    engine.stays = True
    with pytest.raises(Conflict, match="does not fit"):
        await lend(registry)
    assert engine.layers == {"main": 40, "small": 0}


async def test_what_a_run_that_ended_had_borrowed_is_given_back(registry: Registry, engine: Engine):
    """However it ended: what it borrowed is known as long as it has it."""
    runs = Runs(registry.pool)
    await runs.add("default", Order(), "http")
    run = await runs.claim()
    assert run
    await runs.lend(run, await lend(registry))
    assert lent_to(await runs.get(None, run.id)) == {"main": 40}
    await left_over(runs, registry)
    assert engine.layers["main"] == 0  # it works
    await runs.finish(run, "failed", error="killed", result={"steps": 3})
    assert (await runs.get(None, run.id)).result == {LENT: {"main": 40}, "steps": 3}
    await left_over(runs, registry)
    assert engine.layers["main"] == 40
    assert (await runs.get(None, run.id)).result == {"steps": 3}


async def test_what_an_operator_placed_meanwhile_stays(registry: Registry, engine: Engine):
    """Giving back changes nothing that somebody decided."""
    lent = await lend(registry)
    await place(registry, "main", 12)
    await give_back(registry, lent)
    assert engine.layers["main"] == 12


@pytest.mark.parametrize(("there", "free", "lends"), [(1.0, 0.0, True), (2.0, 1.0, False), (0.0, 0.0, False)])
async def test_tuning_borrows_gpus_only_where_serving_holds_them(
    there: float,
    free: float,
    lends: bool,
    registry: Registry,
    engine: Engine,
    postgres_home: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """For as long as it lasts, and Ray is asked for none meanwhile: by its counting they are taken."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": there})
    monkeypatch.setattr("ray.available_resources", lambda: {"GPU": free})
    monkeypatch.setattr(working.cluster, "connected", lambda _: nullcontext())
    runs = Runs(registry.pool)
    await runs.add("default", Order(), "http")
    run = await runs.claim()
    assert run

    def tuning() -> tuple[bool | None, int, dict[str, int]]:
        with (
            working.Desk(postgres_home) as desk,
            working._gpus(desk, run, Step("tune", "tune", {}, {}), Recipe()) as chosen,
        ):
            return chosen.gpu, engine.layers["main"], lent_to(desk.ask(desk.runs.get(None, run.id)))

    assert await asyncio.to_thread(tuning) == ((False, 0, {"main": 40}) if lends else (None, 40, {}))
    assert engine.layers["main"] == 40
    assert lent_to(await runs.get(None, run.id)) == {}
