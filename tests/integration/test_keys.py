"""Keys, tenants and limits over a real PostgreSQL: what is kept, who is let in, what two gateways count together."""

import asyncio
import json
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import SecretStr

from app.errors import InvalidRequest, NotFound, RateLimited, Unauthorized, Unavailable
from app.feedback import FeedbackStore
from app.forgetting import Forgetting
from app.keyring import REMEMBERED_S, Keyring
from app.keys import Key, Keys, Limits, pepper, pepper_file
from app.limits import SQL, Limiter
from app.recorder import Recorder
from app.spool import Spool
from deployments.guard import Guard
from deployments.metrics import Metrics
from deployments.routes import conversations, refusals
from tests.integration.test_conversations import turn, user

pytestmark = pytest.mark.integration
PEPPER = b"of the tests"


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Away:
    """A pool whose server is away."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("nobody listens")


@pytest.fixture
def keys(pool: asyncpg.Pool) -> Keys:
    return Keys(pool, PEPPER)


def ring(pool: Any, home: Path, api_key: str | None = None, clock: Clock | None = None) -> Keyring:
    return Keyring(
        pool,
        home,
        api_key=SecretStr(api_key) if api_key else None,
        pepper=SecretStr(PEPPER.decode()),
        now=clock or Clock(),
    )


async def test_a_key_opens_its_tenant_and_its_scopes(keys: Keys, pool: asyncpg.Pool, tmp_path: Path):
    """And nothing that differs from it by a letter opens anything."""
    key, text = await keys.create("acme", ["chat", "documents"], name="bot")
    caller = await ring(pool, tmp_path).caller(text)
    assert caller is not None
    assert (caller.tenant, caller.scopes, caller.key_id) == ("acme", {"chat", "documents"}, key.id)
    assert caller.may("chat")
    assert not caller.may("train")
    for wrong in (text[:-1], text + "x", f"mf_{key.id}_", "mf_aaaaaaaaaaaa_" + text.rsplit("_", 1)[1], "", "none"):
        with pytest.raises(Unauthorized):
            await ring(pool, tmp_path).caller(wrong)


async def test_the_secret_is_kept_nowhere(keys: Keys, pool: asyncpg.Pool):
    """Neither in the database, nor in what a key shows of itself."""
    key, text = await keys.create("acme", ["chat"])
    secret = text.split("_", 2)[2]
    rows = await pool.fetch("select keys::text as row from keys")
    assert all(secret not in row["row"] and secret.encode().hex() not in row["row"] for row in rows)
    assert secret not in repr(key) + key.model_dump_json() + repr(await keys.find(key.id))
    assert Keys(pool, b"another pepper").digest(secret) != keys.digest(secret)


async def test_a_revoked_key_is_forgotten_within_seconds(keys: Keys, pool: asyncpg.Pool, tmp_path: Path):
    """On every gateway, also on one that knew it a moment ago."""
    clock = Clock()
    gateway = ring(pool, tmp_path, clock=clock)
    key, text = await keys.create("acme", ["chat"])
    await keys.create("other", ["chat"])  # so that keys are needed afterwards, too
    await gateway.caller(text)
    await keys.revoke(key.id)
    clock.now += REMEMBERED_S
    with pytest.raises(Unauthorized):
        await gateway.caller(text)
    with pytest.raises(NotFound):
        await keys.revoke("aaaaaaaaaaaa")


async def test_a_key_expires(keys: Keys, pool: asyncpg.Pool, tmp_path: Path):
    """At its time, and one that would have expired already is not made."""
    key, text = await keys.create("acme", ["chat"], expires_at=datetime.now(UTC) + timedelta(hours=1))
    gateway = ring(pool, tmp_path)
    await gateway.caller(text)
    await pool.execute("update keys set expires_at = now()")
    with pytest.raises(Unauthorized):
        await ring(pool, tmp_path).caller(text)
    gateway._remembered[key.id].kept = await keys.find(key.id)
    with pytest.raises(Unauthorized):
        await gateway.caller(text)  # which remembers it
    with pytest.raises(InvalidRequest, match="would have expired"):
        await keys.create("acme", ["chat"], expires_at=datetime.now(UTC) - timedelta(days=1))


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"scopes": ["root"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"limits": Limits.model_construct(requests_per_minute=0)}, "limits"),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(keys: Keys, arguments: dict[str, Any], param: str):
    """With the value and what it may be."""
    with pytest.raises(InvalidRequest) as refusal:
        await keys.create(**{"tenant": "acme", "scopes": ["chat"]} | arguments)
    assert refusal.value.param == param


async def test_without_any_key_nobody_has_to_show_one(pool: asyncpg.Pool, keys: Keys, tmp_path: Path):
    """As soon as one exists everybody has to; MINDFU_API_KEY opens in any case."""
    clock = Clock()
    gateway = ring(pool, tmp_path, clock=clock)
    await pool.execute("delete from keys")
    assert await gateway.caller("none") is None
    await keys.create("acme", ["chat"])
    clock.now += REMEMBERED_S
    with pytest.raises(Unauthorized):
        await gateway.caller("none")
    with pytest.raises(Unauthorized):  # another machine on the same database, which has no pepper
        await Keyring(pool, tmp_path, api_key=None, pepper=None).caller("none")
    admin = await ring(pool, tmp_path, "sesame").caller("sesame")
    assert admin is not None
    assert admin.may("train")


async def test_where_others_can_reach_us_a_key_is_needed_though_none_was_made(pool: asyncpg.Pool, tmp_path: Path):
    """Also while the database is away, and when the table of keys was lost."""
    for reached in (pool, Away()):
        with pytest.raises(Unauthorized):
            await Keyring(reached, tmp_path, api_key=None, pepper=None, required=True).caller("none")


@pytest.mark.parametrize("end", ["revoked_at = now()", "expires_at = now()"])
async def test_the_end_of_the_last_key_opens_no_door(keys: Keys, pool: asyncpg.Pool, tmp_path: Path, end: str):
    """A leaked key that is revoked, or one that expires at night, must not let everyone in."""
    await keys.create("acme", ["chat"])
    await pool.execute(f"update keys set {end}")
    with pytest.raises(Unauthorized):
        await ring(pool, tmp_path).caller("none")


async def test_without_keys_answers_do_not_need_postgres(tmp_path: Path):
    """A home without a pepper has made no key, and who was never refused is not because a server is away."""
    assert await Keyring(Away(), tmp_path, api_key=None, pepper=None).caller("none") is None


async def test_known_keys_work_while_postgres_is_away(keys: Keys, pool: asyncpg.Pool, tmp_path: Path):
    """Unknown ones cannot be told, which is not the caller's fault; and not knowing whether there are keys is yes."""
    clock = Clock()
    gateway = ring(pool, tmp_path, clock=clock)
    _, text = await keys.create("acme", ["chat"])
    _, unseen = await keys.create("acme", ["chat"])
    await gateway.caller(text)
    clock.now += 10 * REMEMBERED_S
    gateway._keys._pool = Away()
    assert (await gateway.caller(text)).tenant == "acme"
    with pytest.raises(Unavailable):
        await gateway.caller(unseen)
    with pytest.raises(Unauthorized):
        await ring(Away(), tmp_path).caller("none")
    with pytest.raises(Unavailable):
        await ring(Away(), tmp_path).caller(text)


async def test_last_use_and_spending_are_told(keys: Keys, pool: asyncpg.Pool, tmp_path: Path):
    """Of the recorded turns that came with the key."""
    key, text = await keys.create("acme", ["chat"])
    await ring(pool, tmp_path).caller(text)
    (found,) = [each for each in await keys.all() if each.id == key.id]
    assert found.last_used_at is not None
    assert (found.turns, found.tokens) == (0, 0)


def test_the_pepper_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path):
    """Two processes agree on it; the one of the environment counts more."""
    assert pepper(tmp_path, None) is None
    made = pepper(tmp_path, None, make=True)
    assert made == pepper(tmp_path, None, make=True) == pepper(tmp_path, None)
    assert stat.S_IMODE(pepper_file(tmp_path).stat().st_mode) == 0o600
    assert pepper(tmp_path, SecretStr("given")) == b"given"


def limited(**limits: int) -> Key:
    return Key(
        id=f"key{datetime.now(UTC).timestamp():.6f}",
        tenant="t",
        scopes=("chat",),
        limits=Limits(**limits),
        created_at=datetime.now(UTC),
    )


async def test_requests_are_counted_over_all_gateways(pool: asyncpg.Pool):
    """Twenty at once through two gateways: exactly as many pass as the limit says."""
    gateways, key = [Limiter(pool, 60), Limiter(pool, 60)], limited(requests_per_minute=7)

    async def one(number: int) -> bool:
        try:
            async with gateways[number % 2].held(key, f"{key.id}-{number}"):
                return True
        except RateLimited:
            return False

    passed = await asyncio.gather(*map(one, range(20)))
    if datetime.now(UTC).second > 1:  # else a new minute may have begun within
        assert sum(passed) == 7


async def test_streams_are_counted_while_they_run(pool: asyncpg.Pool):
    """One more is refused with both numbers; when one ends, another may begin; a dead gateway's are let go in time."""
    limiter, key = Limiter(pool, 60), limited(streams=1)
    async with limiter.held(key, f"{key.id}-a") as standing:
        assert standing.streams == 1
        with pytest.raises(RateLimited, match="may make 1 requests at the same time and made 1"):
            async with Limiter(pool, 60).held(key, f"{key.id}-b"):  # another gateway
                pass
    async with limiter.held(key, f"{key.id}-c"):
        pass
    short = Limiter(pool, 0.05)
    dead = short.held(key, f"{key.id}-d")
    await dead.__aenter__()
    await asyncio.sleep(0.1)  # its lease is the test's subject
    async with short.held(key, f"{key.id}-e"):
        pass


async def test_tokens_are_charged_after_an_answer(pool: asyncpg.Pool):
    """The answer that goes over the limit is the last one of its minute."""
    limiter, key = Limiter(pool, 60), limited(tokens_per_minute=100)

    async def three() -> None:
        for number in range(3):  # a minute may begin between two of them
            async with limiter.held(key, f"{key.id}-{number}"):
                await limiter.charge(key, 150)

    with pytest.raises(RateLimited, match="may make 100 tokens per minute and made 150"):
        await three()


async def test_minutes_that_are_long_past_are_forgotten(pool: asyncpg.Pool):
    """By the first request of a minute, whatever its key's limits are."""
    limiter, key = Limiter(pool, 60), limited(streams=3)
    past = (
        "insert into key_minutes (key_id, minute) select $1, now() - make_interval(mins => n) from unnest($2::int[]) n"
    )
    await pool.execute(past, key.id, [2, 61, 600])
    async with limiter.held(key, f"{key.id}-a"):
        pass
    assert await pool.fetchval("select count(*) from key_minutes where key_id = $1", key.id) == 2


async def test_one_statement_counts_a_request(pool: asyncpg.Pool):
    """A first token waits for every trip to the database."""
    key, asked = limited(requests_per_minute=1, tokens_per_minute=1, streams=1), list[str]()
    async with pool.acquire() as connection:
        with connection.query_logger(lambda record: asked.append(record.query)):
            await Limiter(connection, 60)._enter(key, f"{key.id}-a")
            await asyncio.sleep(0)  # the log is written a step later
        assert asked == [SQL["enter"]]


async def test_nothing_is_limited_while_postgres_is_away():
    """Answers matter more than their price."""
    limiter, key = Limiter(Away(), 60), limited(requests_per_minute=1)
    for number in range(3):
        async with limiter.held(key, f"{key.id}-{number}") as standing:
            assert standing is None


@pytest.fixture
def app(pool: asyncpg.Pool, tmp_path: Path) -> FastAPI:
    """A guard with a real keyring and limiter, and routes that say who called."""
    made = FastAPI()
    limits = {"max_body": 1000, "max_upload": 1000, "metrics": Metrics()}
    made.add_middleware(Guard, keyring=ring(pool, tmp_path), limiter=Limiter(pool, 60), **limits)
    refusals.register(made)

    async def who(request: Request) -> dict[str, str]:
        return {"tenant": request.state.caller.tenant}

    for path in (
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/documents",
        "/v1/fine_tuning/jobs",
        "/metrics",
        "/health",
    ):
        made.add_api_route(path, who, methods=["POST", "GET"])
    return made


def client(app: FastAPI, text: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {text}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://remote.example", headers=headers)


async def test_each_route_asks_for_its_scope(keys: Keys, app: FastAPI):
    """A missing one is a 403 that names it; health is for everybody, a tenant comes from the key alone."""
    _, text = await keys.create("acme", ["chat"])
    async with client(app, text) as http:
        assert (await http.post("/v1/chat/completions")).json() == {"tenant": "acme"}
        for path, scope in (("/v1/documents", "documents"), ("/v1/fine_tuning/jobs", "train"), ("/metrics", "admin")):
            response = await http.get(path)
            assert response.status_code == 403
            assert f"scope '{scope}'" in response.json()["error"]["message"]
    async with client(app, "wrong") as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.post("/v1/chat/completions")).status_code == 401
        refusal = await http.post("/v1/messages")
    assert refusal.status_code == 401
    assert refusal.json()["error"]["type"] == "authentication_error"


async def test_a_key_reaches_no_other_tenants_conversations(keys: Keys, pool: asyncpg.Pool, tmp_path: Path):
    """What another tenant has is not there: not in lists, not by its id, not to judge and not to delete."""
    recorder = Recorder(pool, Spool(tmp_path))
    gateway: Any = SimpleNamespace(
        recorder=recorder,
        conversations=recorder.conversations,
        feedback=FeedbackStore(pool),
        forgetting=Forgetting(pool),
    )
    guarded = FastAPI()
    sizes = {"max_body": 1000, "max_upload": 1000, "metrics": Metrics()}
    guarded.add_middleware(Guard, keyring=ring(pool, tmp_path), limiter=None, **sizes)
    refusals.register(guarded)
    guarded.include_router(conversations.routes(gateway))
    kept = turn(user("ours"), tenant="owner")
    await recorder.conversations.record(kept)
    (_, owner), (_, thief) = await keys.create("owner", ["chat"]), await keys.create("thief", ["chat", "admin"])
    async with client(guarded, owner) as http:
        (found,) = (await http.get("/v1/conversations")).json()["data"]
    path, judged = f"/v1/conversations/{found['id']}", {"turn_id": kept.id, "rating": -1}
    async with client(guarded, thief) as http:
        assert (await http.get("/v1/conversations", headers={"x-tenant": "owner"})).json()["data"] == []
        assert (await http.get(path)).status_code == 404
        assert (await http.delete(path)).status_code == 404
        assert (await http.post("/v1/feedback", json=judged)).status_code == 404
    async with client(guarded, owner) as http:
        assert (await http.get(path)).status_code == 200
        assert (await http.post("/v1/feedback", json=judged)).status_code < 300


@pytest.mark.parametrize(
    ("path", "header", "kind"),
    [
        ("/v1/chat/completions", "x-ratelimit-%s-requests", None),
        ("/v1/messages", "anthropic-ratelimit-requests-%s", "error"),
    ],
)
async def test_limits_are_told_in_the_dialects_headers(
    keys: Keys, app: FastAPI, path: str, header: str, kind: str | None
):
    """With every answer, and with the refusal as well, which also tells the time to wait."""
    _, text = await keys.create("acme", ["chat"], limits=Limits(requests_per_minute=1))
    async with client(app, text) as http:
        first, second = await http.post(path), await http.post(path)
    assert (first.status_code, first.headers[header % "limit"], first.headers[header % "remaining"]) == (200, "1", "0")
    if datetime.now(UTC).second > 1:
        assert second.status_code == 429
        assert 1 <= int(second.headers["retry-after"]) <= 60
        assert (second.headers[header % "limit"], second.headers[header % "remaining"]) == ("1", "0")
        assert second.headers[header % "reset"]
        error = second.json()["error"]
        assert error["type"] == "rate_limit_error"
        assert second.json().get("type") == kind


def test_the_command_makes_lists_and_revokes_keys(tmp_path: Path):
    """Without a server, on a database of its own; the key is shown once."""

    def mindfu(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deployments.cli", "keys", *arguments]
        environment = {"MINDFU_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)

    made = mindfu("create", "--tenant", "acme", "--scope", "chat", "--scope", "documents", "--json")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    listed = mindfu("list")
    assert key["id"] in listed.stdout
    assert key["key"] not in listed.stdout
    assert mindfu("revoke", key["id"]).returncode == 0
    assert "revoked" in mindfu("list").stdout
    refused = mindfu("create", "--tenant", "a b")
    assert (refused.returncode, "tenant" in refused.stderr) == (1, True)
    unknown = mindfu("revoke", "nobody")
    assert (unknown.returncode, "nobody" in unknown.stderr) == (1, True)
