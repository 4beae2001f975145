"""Which engines are kept warm, who waits for whom, and what goes when room is needed."""

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from app.errors import Misconfigured, ModelNotFound, Unavailable
from app.llama.shelf import Limits, Shelf


class Fake:
    """An engine that knows its name and whether it was closed."""

    def __init__(self, name: str) -> None:
        self.name, self.closed = name, False

    def close(self) -> None:
        self.closed = True


class Loader:
    """Loads fakes, as soon as the test lets it."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.may.set()
        self.loaded: list[str] = []
        self.refuses = "broken"

    def __call__(self, name: str) -> Fake:
        assert self.may.wait(10)
        if name == self.refuses:
            raise Misconfigured("llm.model", "does not load", "Use another.")
        self.loaded.append(name)
        return Fake(name)


SIZES = {"a": 10, "b": 20, "c": 30, "broken": 1, "huge": 1000}


@pytest.fixture
def loader() -> Loader:
    return Loader()


def shelf(loader: Loader, **limits: object) -> Shelf[Fake]:
    return Shelf(tuple(SIZES), SIZES.__getitem__, loader, Limits(**limits))


async def use(one: Shelf[Fake], name: str) -> Fake:
    async with one.borrowed(name) as engine:
        assert not engine.closed
        return engine


async def test_a_model_loads_when_first_asked_for_and_stays(loader: Loader):
    """Once, for everybody who asks meanwhile too."""
    one = shelf(loader)
    engines = await asyncio.gather(*(use(one, "a") for _ in range(5)))
    assert len(set(engines)) == 1
    assert await use(one, "a") is engines[0]
    assert loader.loaded == ["a"]


async def test_the_model_that_was_not_asked_for_the_longest_goes(loader: Loader):
    """Room for two: a is asked for again, so that b goes for c."""
    one = shelf(loader, engines=2)
    for name in ("a", "b", "a", "c"):
        await use(one, name)
    assert set(one.warm()) == {"a", "c"}
    assert (one.loads, one.evictions) == (3, 1)


async def test_a_budget_of_bytes_is_kept(loader: Loader):
    """10 + 30 fit 45, and 20 more do not: both older ones go, until it does."""
    one = shelf(loader, engines=9, total_bytes=45)
    for name in ("a", "c"):
        await use(one, name)
    assert set(one.warm()) == {"a", "c"}
    await use(one, "b")
    assert set(one.warm()) == {"b"}


async def test_a_switch_waits_for_the_requests_that_run(loader: Loader):
    """They finish on the old model; the new one loads only then, because there is room for one."""
    one = shelf(loader)
    async with one.borrowed("a") as running:
        waiting = asyncio.create_task(use(one, "b"))
        while one.warm():  # noqa: ASYNC110 — until the switch has begun
            await asyncio.sleep(0)
        assert not running.closed
        assert loader.loaded == ["a"]
    assert (await waiting).name == "b"
    assert running.closed


async def test_models_take_turns_and_drop_nobody(loader: Loader):
    """Room for one, three models asked for all the time: everybody gets what they asked for."""
    one = shelf(loader)

    async def client(at: int) -> None:
        for turn in range(20):
            name = "abc"[(at + turn) % 3]
            async with one.borrowed(name) as engine:
                assert (engine.name, engine.closed) == (name, False)
                await asyncio.sleep(0)
                assert not engine.closed

    async with asyncio.timeout(20):
        await asyncio.gather(*map(client, range(9)))
    assert len(one.warm()) == 1


async def test_whoever_waits_too_long_is_told_when_to_come_back(loader: Loader):
    """503, and the model goes on loading for the next one."""
    loader.may.clear()
    one = shelf(loader, wait_s=0.01)
    with pytest.raises(Unavailable, match="still being loaded"):
        await use(one, "a")
    loader.may.set()
    async with AsyncExitStack() as stack:
        while "a" not in one.warm():  # noqa: ASYNC110 — a thread sets no asyncio event
            await asyncio.sleep(0.001)
        assert (await stack.enter_async_context(one.borrowed("a"))).name == "a"


async def test_a_client_that_leaves_while_it_waits_holds_nothing(loader: Loader):
    """The model can be put away again."""
    loader.may.clear()
    one = shelf(loader)
    leaving = asyncio.create_task(use(one, "a"))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    loader.may.set()
    async with asyncio.timeout(5):
        assert (await use(one, "b")).name == "b"
        await one.unload("b")
    assert not one.warm()


async def test_a_model_that_does_not_load_is_an_error_for_those_who_asked_and_nobody_else(loader: Loader):
    """And is tried again by the next."""
    one = shelf(loader, engines=2)
    kept = await use(one, "a")
    for _ in range(2):
        with pytest.raises(Misconfigured, match="does not load"):
            await use(one, "broken")
    assert await use(one, "a") is kept


async def test_a_model_over_the_budget_is_refused_with_both_numbers(loader: Loader):
    """Nothing is put away for it."""
    one = shelf(loader, total_bytes=100)
    await use(one, "a")
    with pytest.raises(Misconfigured, match=r"llm\.memory_budget_bytes: is 0\.00 GB, the model 'huge' alone needs"):
        await use(one, "huge")
    assert set(one.warm()) == {"a"}


async def test_a_preloaded_model_is_there_when_it_is_asked_for(loader: Loader):
    """Nobody waits for it."""
    one = shelf(loader, engines=2, wait_s=0.0)
    one.preload("a")
    while "a" not in one.warm():  # noqa: ASYNC110 — a thread sets no asyncio event
        await asyncio.sleep(0.001)
    assert (await use(one, "a")).name == "a"


async def test_an_unknown_model_is_not_found(loader: Loader):
    """With the names of those that are there."""
    with pytest.raises(ModelNotFound, match="a, b, c"):
        await use(shelf(loader), "d")


async def test_a_closed_shelf_keeps_nothing(loader: Loader):
    """What was loading meanwhile neither."""
    one = shelf(loader, engines=2)
    first = one.begin("a")
    loader.may.clear()
    late = asyncio.create_task(use(one, "b"))
    await asyncio.sleep(0)
    one.close()
    loader.may.set()
    with pytest.raises(Unavailable):
        await late
    assert first.closed
    assert not one.warm()
    with pytest.raises(Unavailable):
        await use(one, "a")


async def test_a_model_is_loaded_anew_while_requests_wait(loader: Loader):
    """What runs ends on the old engine; who comes meanwhile gets the new one; two are never there at once."""
    one = shelf(loader)
    old = await use(one, "a")
    loader.may.clear()
    async with one.borrowed("a"):
        renewing = asyncio.create_task(one.renew("a"))
        while one.warm():  # noqa: ASYNC110 — a task's step sets no event
            await asyncio.sleep(0)
        waiting = asyncio.create_task(use(one, "a"))
        await asyncio.sleep(0)
        assert not old.closed
    loader.may.set()
    await renewing
    new = await waiting
    assert (old.closed, new.closed, new is old) == (True, False, False)
    assert (one.loads, loader.loaded) == (2, ["a", "a"])


async def test_what_is_not_loaded_is_not_loaded_anew(loader: Loader):
    """The next request loads it."""
    one = shelf(loader)
    await one.renew("a")
    assert loader.loaded == []


async def test_a_model_that_does_not_load_anew_is_tried_again_when_asked_for(loader: Loader):
    """Whoever waited is told why."""
    one = shelf(loader)
    await use(one, "a")
    loader.refuses = "a"
    async with one.borrowed("a"):
        renewing = asyncio.create_task(one.renew("a"))
        while one.warm():  # noqa: ASYNC110 — a task's step sets no event
            await asyncio.sleep(0)
        waiting = asyncio.create_task(use(one, "a"))
        await asyncio.sleep(0)
    await renewing
    with pytest.raises(Misconfigured):
        await waiting
    loader.refuses = "broken"
    assert not (await use(one, "a")).closed
