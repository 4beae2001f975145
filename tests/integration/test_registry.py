"""Adapters by name and version, and the desired state of serving, in a real PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from gguf_factory import constant_adapter

from app.desired import Desired
from app.errors import Conflict, InvalidRequest, NotFound, NotPromoted
from app.following import FILE, Follower
from app.promotion import SWITCH_S, promote, rollback
from app.registry import Holding, Holdings, Registry

pytestmark = pytest.mark.integration


@pytest.fixture
def registry(pool: asyncpg.Pool, tmp_path: Path) -> Registry:
    return Registry(pool, tmp_path)


async def added(registry: Registry, version: str, letter: str = "x", verdict: str | None = "passed") -> None:
    file = constant_adapter(registry.home / f"{version}.gguf", ord(letter))
    await registry.add("m", version, file, verdict=verdict)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 — what is awaited comes from PostgreSQL
            await asyncio.sleep(0.005)


async def test_a_known_adapter_can_be_named(registry: Registry):
    """`<model>` is its champion or the bare base, `<model>:base` the base, `<model>:<version>` an adapter."""
    await added(registry, "v1")
    await added(registry, "v2")
    desired = await registry.desired()
    assert desired.names(["m", "other"]) == ("m", "m:base", "m:v1", "m:v2", "other", "other:base")
    assert [desired.answering("m", suffix) for suffix in ("", "base", "v2")] == [None, None, "v2"]
    await promote(registry, "m", "v1")
    desired = await registry.desired()
    assert [desired.answering("m", suffix) for suffix in ("", "base", "v2")] == ["v1", None, "v2"]


async def test_the_files_path_is_kept_relative_to_the_home(
    registry: Registry, tmp_path_factory: pytest.TempPathFactory
):
    """So that a home can move; a file elsewhere is kept where it is."""
    await added(registry, "v1")
    elsewhere = constant_adapter(tmp_path_factory.mktemp("shared") / "v2.gguf", ord("y"))
    await registry.add("m", "v2", elsewhere)
    assert [adapter.path for adapter in (await registry.desired()).adapters] == ["v1.gguf", str(elsewhere)]


async def test_a_version_is_never_used_twice(registry: Registry):
    """Not for other content, not after it was retired; the same content again changes nothing."""
    await added(registry, "v1", "x")
    await added(registry, "v1", "x")
    with pytest.raises(Conflict, match="never used twice"):
        await added(registry, "v1", "y")
    await registry.retire("m", "v1")
    with pytest.raises(Conflict, match="never used twice"):
        await added(registry, "v1", "y")
    assert (await registry.desired()).versions("m") == ()
    with pytest.raises(NotPromoted, match="retired"):
        await promote(registry, "m", "v1")


@pytest.mark.parametrize("version", ["base", "", "a:b", "a/b", "../x", "-x", "a b", "x" * 64])
async def test_a_name_that_could_be_read_otherwise_is_refused(registry: Registry, version: str):
    """`base` is the bare base, a colon separates, and a path is no name."""
    with pytest.raises(InvalidRequest, match="cannot name an adapter"):
        await registry.add("m", version, registry.home / "any.gguf")


async def test_a_file_that_is_none_is_refused(registry: Registry):
    """Missing, or of another kind."""
    (registry.home / "text.gguf").write_text("hello")
    for name, reason in (("nowhere.gguf", "No such file"), ("text.gguf", "not a GGUF")):
        with pytest.raises(InvalidRequest, match=reason):
            await registry.add("m", "v1", registry.home / name)


async def test_only_what_passed_the_gates_is_promoted(registry: Registry):
    """Anything else by force alone, and the history says so."""
    await added(registry, "never", verdict=None)
    await added(registry, "bad")
    await registry.judge("m", "bad", "blocked", ["loss rose by 3 %"])
    with pytest.raises(NotPromoted, match="never evaluated"):
        await promote(registry, "m", "never")
    with pytest.raises(NotPromoted, match="loss rose by 3 %"):
        await promote(registry, "m", "bad")
    assert (await registry.desired()).of("m").champion is None
    await promote(registry, "m", "bad", force=True, reason="a demo")
    (line,) = await registry.changes("m")
    assert (line.kind, line.version, line.before, line.forced, line.reason) == ("promote", "bad", None, True, "a demo")
    with pytest.raises(NotFound):
        await promote(registry, "m", "unknown")


async def test_a_rollback_goes_back_and_a_second_one_forth(registry: Registry):
    """Also to the bare base, where nothing answered before."""
    with pytest.raises(Conflict, match="nothing to go back to"):
        await rollback(registry, "m")
    for version in ("v1", "v2"):
        await added(registry, version)
        await promote(registry, "m", version)
    seen = [(done.champion, done.previous) for done in [await rollback(registry, "m") for _ in range(2)]]
    assert seen == [("v1", "v2"), ("v2", "v1")]
    await added(registry, "v3")
    await promote(registry, "m", "v3")
    assert (await registry.desired()).of("m").resident == ("v3", "v2")
    with pytest.raises(Conflict, match="kept for a rollback"):
        await registry.retire("m", "v2")
    await registry.retire("m", "v1")


async def test_one_promotion_of_a_model_at_a_time(registry: Registry):
    """The other one is told so, and may try again."""
    await added(registry, "v1")
    async with registry.alone("m"):
        with pytest.raises(Conflict, match="under way"):
            await promote(registry, "m", "v1")
        with pytest.raises(Conflict, match="under way"):
            await rollback(registry, "m")
    await promote(registry, "m", "v1")


class Engine:
    """Says that it holds what it shall, or why it does not. taken: the revisions that it was told."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem, self.taken = problem, list[int]()
        self.ready = asyncio.Event()
        self.ready.set()

    async def converge(self, desired: Desired) -> Holdings:
        self.taken.append(desired.revision)
        await self.ready.wait()
        resident = desired.of("m").resident
        if self.problem:
            return {"m": Holding(failed=dict.fromkeys(resident, self.problem))}
        return {"m": Holding(loaded=resident)}


async def test_nobody_is_answered_by_an_adapter_before_every_engine_has_it(registry: Registry, following: "Following"):
    """Gateways go by the old champion until the slowest engine has loaded the new one, and the promotion ends last.

    A rollback waits for no engine.
    """
    slow = Engine()
    gateway = await following("gateway")
    await following("engine", Engine().converge)
    await following("engine", slow.converge)
    await added(registry, "v1")
    await until(lambda: gateway.desired.revision == 1)
    slow.ready.clear()
    promotion = asyncio.create_task(promote(registry, "m", "v1"))
    await until(lambda: 2 in slow.taken)
    assert gateway.desired.of("m").champion is None
    slow.ready.set()
    done = await promotion
    assert gateway.desired.of("m").champion == "v1"
    assert (done.engines, done.gateways, done.revision) == (2, 1, gateway.desired.revision)
    slow.ready.clear()
    done = await rollback(registry, "m")
    slow.ready.set()
    assert gateway.desired.of("m").champion is None
    assert done.seconds < SWITCH_S


async def test_an_engine_that_cannot_load_it_ends_the_promotion(registry: Registry, following: "Following"):
    """With the reason; the champion before goes on, and the adapter is no longer asked for."""
    gateway = await following("gateway")
    engine = Engine()
    await following("engine", engine.converge)
    await added(registry, "v1")
    await promote(registry, "m", "v1")
    await added(registry, "v2")
    engine.problem = "the file is away"
    with pytest.raises(NotPromoted, match="the file is away"):
        await promote(registry, "m", "v2")
    serving = (await registry.desired()).of("m")
    assert (serving.champion, serving.staged) == ("v1", None)
    assert gateway.desired.of("m").champion == "v1"


async def test_a_process_without_a_word_is_no_longer_waited_for(registry: Registry, pool: asyncpg.Pool):
    """It died, perhaps with its machine: after ten seconds nobody counts on it."""
    ended = Follower("gateway", registry)
    await registry.report(ended.id, "gateway", 0, {})
    await pool.execute("update serving_members set seen_at = now() - interval '11 seconds'")
    await added(registry, "v1")
    assert (await promote(registry, "m", "v1")).gateways == 0


async def test_a_lost_notification_is_made_up_for(registry: Registry, pool: asyncpg.Pool, following: "Following"):
    """The change is found by asking."""
    gateway = await following("gateway", poll_s=0.05)
    await added(registry, "v1")
    await pool.execute("update serving_revision set revision = revision + 1")  # says nothing to anybody
    await pool.execute("insert into serving (model, champion) values ('m', 'v1')")
    await until(lambda: gateway.desired.of("m").champion == "v1")


async def test_a_cut_connection_is_opened_again(registry: Registry, pool: asyncpg.Pool, following: "Following"):
    """And what changed meanwhile is known at once."""
    gateway = await following("gateway")
    cut = (
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and query like 'select%'"
    )
    await pool.execute(cut)
    await added(registry, "v1")
    await promote(registry, "m", "v1")
    assert gateway.desired.of("m").champion == "v1"


async def test_who_starts_without_postgresql_goes_by_what_was_last_known(registry: Registry, following: "Following"):
    """An outage does not change who answers."""
    await following("gateway")
    await added(registry, "v1")
    await promote(registry, "m", "v1")
    known = Follower("engine", Registry(None, registry.home))
    assert known.desired.of("m").champion == "v1"
    (registry.home / FILE).write_text("{")
    assert Follower("engine", Registry(None, registry.home)).desired == Desired()


async def test_another_database_is_followed_though_its_revision_is_the_same(registry: Registry, pool: asyncpg.Pool):
    """As after a restore: what the file says of the old one must not stand."""
    await added(registry, "v1")
    await Follower("gateway", registry).refresh()
    await pool.execute("update adapters set version = 'v2'")
    follower = Follower("gateway", registry)
    assert [adapter.version for adapter in follower.desired.adapters] == ["v1"]
    assert [adapter.version for adapter in (await follower.refresh()).adapters] == ["v2"]


async def test_who_ends_says_so(registry: Registry):
    """A promotion need not wait for its silence."""
    follower = Follower("gateway", registry)
    await follower.start()
    assert len(await registry.members()) == 1
    await follower.close()
    assert await registry.members() == ()


Following = Callable[..., Awaitable[Follower]]


@pytest.fixture
async def following(registry: Registry):
    """Starts followers, and closes them at the end."""
    started: list[Follower] = []

    async def start(part: str, *converge: Callable[[Desired], Awaitable[Holdings]], poll_s: float = 60.0) -> Follower:
        started.append(Follower(part, registry, *converge, poll_s=poll_s))
        await started[-1].start()
        return started[-1]

    yield start
    for follower in started:
        await follower.close()
