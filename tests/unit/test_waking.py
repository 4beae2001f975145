"""A model without a replica: what is said of it, and how long requests are held."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from app.errors import Starting, Unavailable
from deployments.calls import call, stream
from deployments.waking import Sleeper, Standing, standing
from tests.gateway import Local

REPLICA = {"state": "STARTING", "start_time_s": 1000.0}


def details(*replicas: dict[str, Any], least: int = 0, status: str = "HEALTHY") -> dict[str, Any]:
    """Of a deployment, as Serve tells them."""
    scaling = {"min_replicas": least, "max_replicas": 2}
    said = "The replica died: no such file."
    return {
        "deployment_config": {"autoscaling_config": scaling},
        "replicas": list(replicas),
        "status": status,
        "message": said,
    }


class Engine:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()

    async def card(self) -> str:
        await self.let.wait()
        return "card"

    async def generate(self) -> Any:
        await self.let.wait()
        for item in "abc":
            yield item


def sleeper(engine: Engine, *found: Standing, wait_s: float = 0.01) -> Sleeper:
    """Held over an engine, of which Serve says one thing after the other, and then the last again and again."""
    told = list(found)

    async def look(_: object) -> Standing:
        if len(told) == 1:
            engine.let.set()
        return told.pop(0) if len(told) > 1 else told[0]

    return Sleeper(Local(engine), "language model", wait_s, look)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "state", "stage"),
    [
        (details(), "asleep", "asleep"),
        (details(REPLICA), "starting", "waiting for a node for "),
        (details(REPLICA | {"node_id": "n1"}), "starting", "loading on its node for "),
        (details(REPLICA, REPLICA | {"state": "RUNNING"}), "ok", "ok"),
        (details(REPLICA | {"state": "STOPPING"}), "asleep", "asleep"),
    ],
)
def test_how_far_a_model_is_follows_from_what_serve_says(told: dict[str, Any], state: str, stage: str):
    """Without a replica it sleeps; one that waits for a node is told from one that loads."""
    found = standing(told)
    assert (found.state, found.sleeps, found.trouble) == (state, True, "")
    assert found.stage.startswith(stage)


def test_only_a_deployment_that_may_go_to_zero_sleeps():
    """One with a fixed number of replicas, or at least one, is always asked."""
    assert not standing(details(least=1)).sleeps
    assert not standing(details() | {"deployment_config": {"num_replicas": 1}}).sleeps


def test_replicas_that_do_not_start_are_trouble():
    """What Serve says of them reaches operators."""
    assert standing(details(REPLICA, status="UNHEALTHY")).trouble == "The replica died: no such file."


async def test_a_call_is_held_until_a_replica_answers():
    """Nothing is refused before the wait is over, and no controller is asked by then."""
    engine = Engine()
    held = sleeper(engine, Standing(running=0, sleeps=True), wait_s=60.0)
    asyncio.get_running_loop().call_later(0.01, engine.let.set)
    assert await call("language model", held, "card") == "card"
    assert [item async for item in stream("language model", held, "generate")] == ["a", "b", "c"]


async def test_a_call_that_waits_too_long_is_told_how_far_it_is():
    """The answer is a 503 that says when to ask again."""
    engine = Engine()
    held = sleeper(engine, Standing(0, starting=1, nodeless=1, sleeps=True), Standing(1))
    with pytest.raises(Starting, match=r"is being started: waiting for a node for \d+ s\..* Retry in 10 s"):
        await call("language model", held, "card")
    held = sleeper(engine, Standing(0, sleeps=True, trouble="no such file"), Standing(1))
    with pytest.raises(Starting, match="GET /health says why") as caught:
        await anext(stream("language model", held, "generate"))
    assert caught.value.status == 503
    assert caught.value.progress
    assert caught.value.progress["stage"] == "asleep"


async def test_a_busy_replica_is_waited_for():
    """A queue is no sleep: what an engine has taken is not given up."""
    held = sleeper(Engine(), Standing(running=1), Standing(running=1), Standing(running=1))
    assert await call("language model", held, "card") == "card"


async def test_a_stream_that_no_replica_takes_up_is_given_up():
    """A replica that took it would have beaten by then: its node is cut off, and Serve does not know yet."""
    items = stream("language model", sleeper(Engine(), Standing(running=1), Standing(running=1)), "generate")
    with pytest.raises(Unavailable, match=r"none of its replicas took the request within 0\.01 s"):
        await anext(items)


async def test_what_is_known_of_the_model_is_learnt_with_its_first_answer():
    """Before that answer is passed on, once."""
    engine, greeted = Engine(), list[str]()
    engine.let.set()

    async def greet() -> None:
        greeted.append("seen")

    async def look(_: object) -> Standing:
        return Standing(running=1)

    held = Sleeper(Local(engine), "language model", 1.0, look, greet)  # type: ignore[arg-type]
    assert not held.asked
    answers: list[Awaitable[Any]] = [call("language model", held, "card") for _ in range(2)]
    assert await asyncio.gather(*answers) == ["card", "card"]
    assert (greeted, held.asked) == (["seen"], True)
