"""What is forgotten goes from everywhere: database, memory, data sets; and what learnt from it answers no more."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from app.conversations import Conversations
from app.errors import NotFound, NotPromoted
from app.feedback import FeedbackStore
from app.forgetting import Forgetting, sweep
from app.messages import Message
from app.promotion import promote, rollback
from app.registry import Registry
from app.turns import Turn
from tests.gateway import MODEL, Whole, whole
from train import stages
from train.stages import Input, Manifest

pytestmark = pytest.mark.integration


@pytest.fixture
async def registry(pool: asyncpg.Pool, tmp_path: Path) -> Registry:
    return Registry(pool, tmp_path)


async def recorded(pool: asyncpg.Pool, text: str, **extras: str) -> tuple[str, str]:
    """A conversation of one turn. Returns their ids."""
    turn = Turn(
        tenant="default",
        request_id=str(uuid4()),
        messages=(Message(role="user", content=text),),
        answer=Message(role="assistant", content="Hi."),
        model="m",
        latency_s=0.1,
        finish_reason="stop",
        status="complete",
        created_at=datetime.now(UTC),
        extras=dict(extras),
    )
    kept = await Conversations(pool).record(turn)
    assert kept.conversation_id
    return kept.conversation_id, turn.id


async def adapter(registry: Registry, version: str, *turns: str) -> None:
    """One that learnt from these turns and passed its gates."""
    file = registry.home / f"{version}.gguf"
    file.write_bytes(b"GGUF" + version.encode())
    await registry.add("m", version, file, verdict="passed", details={"turns": list(turns)})


async def test_adapters_that_learnt_from_it_are_named_and_answer_no_more(pool: asyncpg.Pool, registry: Registry):
    """Not by a promotion, not by force, not by a rollback; others as before."""
    (conversation, turn), (_, other) = [await recorded(pool, text) for text in ("a", "b")]
    for version, learnt in (("first", turn), ("second", turn), ("clean", other)):
        await adapter(registry, version, learnt)
    await promote(registry, "m", "first")
    await promote(registry, "m", "second")
    gone = await Forgetting(pool).conversation("default", conversation)
    assert gone == (1, ("m@first", "m@second"))
    assert (await registry.desired()).of("m").champion == "second"  # it goes on until another one is promoted
    assert (await registry.desired()).of("m").previous is None  # a rollback leads to the bare base
    for force in (False, True):
        with pytest.raises(NotPromoted, match="learnt from 1 turns that were deleted since"):
            await promote(registry, "m", "first", force=force)
    done = await promote(registry, "m", "clean")
    assert (done.champion, done.previous) == ("clean", None)
    assert (await rollback(registry, "m")).champion is None


async def test_an_adapter_that_comes_later_is_marked_from_the_beginning(pool: asyncpg.Pool, registry: Registry):
    """Its run had read what was deleted while it trained."""
    conversation, turn = await recorded(pool, "a")
    await Forgetting(pool).conversation("default", conversation)
    await adapter(registry, "late", turn)
    assert await registry.tainted("m", "late") == 1
    assert await Forgetting(pool).tainted() == ("m@late",)


async def test_a_person_is_forgotten_whatever_the_client_calls_them(pool: asyncpg.Pool):
    """`user`, `safety_identifier`, the user of feedback; others stay."""
    ids = [
        await recorded(pool, "a", user="ann"),
        await recorded(pool, "b", safety_identifier="ann"),
        await recorded(pool, "c"),
        await recorded(pool, "d", user="bob"),
    ]
    await FeedbackStore(pool).give(ids[2][1], "ann", {"rating": 1.0})
    assert (await Forgetting(pool).all_of("default", user="ann")).conversations == 3
    assert [one.id for one in await Conversations(pool).list("default")] == [ids[3][0]]
    assert (await Forgetting(pool).all_of("other")).conversations == 0
    assert (await Forgetting(pool).all_of("default")).conversations == 1


async def test_what_is_not_there_cannot_be_forgotten(pool: asyncpg.Pool):
    """Nor what is another tenant's."""
    conversation, _ = await recorded(pool, "a")
    for tenant, name in (("other", conversation), ("default", str(uuid4())), ("default", "nonsense")):
        with pytest.raises(NotFound):
            await Forgetting(pool).conversation(tenant, name)


def folder(home: Path, place: str, name: str, text: str = "", **reads: Path) -> Path:
    """That of a finished stage."""
    made = home / place / name
    made.mkdir(parents=True)
    if text:
        (made / "data.jsonl").write_text(text + "\n")
    inputs = {key: Input(content=stages.content(path), path=str(path)) for key, path in reads.items()}
    manifest = Manifest(
        stage=name.partition("-")[0], key=name, content=f"content of {name}", inputs=inputs, parameters={}, code="c",
        outputs={}, created_at=datetime.now(UTC), seconds=1.0, facts={"mlflow_run": "r1"},
    )  # fmt: skip
    (made / stages.MANIFEST).write_text(manifest.model_dump_json())
    return made


async def test_data_sets_that_held_it_are_deleted_with_all_that_was_made_of_them(pool: asyncpg.Pool, tmp_path: Path):
    """Words go, weights stay; what never held it stays as it is; nothing is done twice."""
    conversation, turn = await recorded(pool, "a")
    line = json.dumps({"messages": [], "metadata": {"turns": [turn]}})
    export = folder(tmp_path, "datasets", "export-1", line)
    other = folder(tmp_path, "datasets", "export-2", json.dumps({"metadata": {"turns": [str(uuid4())]}}))
    redacted = folder(tmp_path, "datasets", "validate-1", "{}", data=export)  # of which nothing says whose it is
    split = folder(tmp_path, "datasets", "split-1", line, data=redacted)
    tune = folder(tmp_path, "runs", "tune-1", data=split)
    (tune / "adapter").mkdir()
    (tmp_path / "runs" / "tune-2" / ".rows").mkdir(parents=True)
    evaluation = folder(tmp_path, "runs", "evaluate-1", "words", data=split, tuned=tune)
    published = folder(tmp_path, "runs", "publish-1", tuned=tune, evaluation=evaluation)
    report = tmp_path / "mlflow" / "artifacts" / "r1" / "artifacts" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("words")
    assert await sweep(pool, tmp_path) == ()
    await Forgetting(pool).conversation("default", conversation)
    assert set(await sweep(pool, tmp_path)) == {export, redacted, split, evaluation}
    assert other.exists()
    assert (tune / "adapter").exists()
    assert published.exists()
    assert not report.exists()
    assert not (tmp_path / "runs" / "tune-2" / ".rows").exists()
    assert await sweep(pool, tmp_path) == ()


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole(tmp_path_factory.mktemp("forgetting")) as opened:
        yield opened


async def test_over_http_a_person_a_key_or_everything_is_named(gateway: Whole):
    """One of them, and nothing by mistake."""
    async with gateway.http(await gateway.key("acme")) as http:
        said = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        for path, body in (
            ("/v1/chat/completions", said | {"user": "bob"}),
            ("/v1/chat/completions", said | {"user": "ann"}),
            ("/v1/chat/completions", said | {"safety_identifier": "ann"}),
            ("/v1/messages", said | {"metadata": {"user_id": "ann"}, "max_tokens": 9}),
            ("/v1/responses", {"model": MODEL, "input": "Hello", "safety_identifier": "ann"}),
        ):
            assert (await http.post(path, json=body)).status_code == 200
        for query in ("", "?user=ann&all=true"):
            refused = await http.delete(f"/v1/conversations{query}")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "user")
        gone = await http.delete("/v1/conversations?user=ann")
        assert gone.json() == {"object": "conversations.deleted", "deleted": 4, "adapters": []}
        [left] = (await http.get("/v1/conversations")).json()["data"]
        one = await http.delete(f"/v1/conversations/{left['id']}")
        assert one.json()["adapters"] == []
        assert (await http.delete("/v1/conversations?all=true")).json()["deleted"] == 0
