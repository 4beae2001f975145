"""Lend the GPUs that serve to a training run, and get them back. Models answer on the CPU meanwhile.

    layers = await lend(registry)            # {} where no engine has layers on a GPU
    await give_back(registry, layers)

Both are changes of the desired state (app/steering.py): every engine follows, answers that run end first, and nothing
is lent where an engine cannot do without. What was lent stands with the run, so that whoever comes next gives it back.
"""

from collections.abc import Mapping

from app.errors import Conflict
from app.registry import Registry
from app.runs import Run, Runs
from app.steering import control_of, place

LENT = "gpus_lent"  # in a run's result: {model: layers that it had on GPUs}


async def lend(registry: Registry) -> dict[str, int]:
    """Take every model off the GPUs. Returns how many layers each had there. Raises Conflict where one cannot go."""
    held: dict[str, int] = {}
    for member in await registry.members():
        held |= {model: holding.layers for model, holding in member.models.items() if holding.layers}
    lent: dict[str, int] = {}
    try:
        for model, layers in held.items():
            await place(registry, model, 0)
            lent[model] = layers
    except Conflict:
        await give_back(registry, lent)
        raise
    return lent


async def give_back(registry: Registry, lent: Mapping[str, int]) -> None:
    """Put models where they were, unless an operator placed them otherwise meanwhile. Raises Conflict."""
    async with registry.pool.acquire() as connection:
        control = await control_of(connection)
    for model, layers in lent.items():
        if control.layers.get(model) == 0:
            await place(registry, model, layers)


async def left_over(runs: Runs, registry: Registry) -> None:
    """Give back what runs that have ended had borrowed. Raises Conflict."""
    for run in await runs.lending():
        await give_back(registry, lent_to(run))
        await runs.lend(run, {})


def lent_to(run: Run) -> dict[str, int]:
    """What a run has borrowed."""
    told = run.result.get(LENT)
    return {model: int(str(layers)) for model, layers in told.items()} if isinstance(told, dict) else {}
