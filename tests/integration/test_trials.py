"""Adapters on trial beside the champion, through the whole gateway on a real engine: seen, unseen, and taken back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from app.errors import Conflict, NotPromoted
from app.promotion import SWITCH_S, promote, rollback, try_out
from app.settings import WatchSettings
from tests.champions import Served, make, serving

pytestmark = pytest.mark.integration

QUICK = WatchSettings(every_s=0.02, min_turns=5, min_ratings=6)
M = "mindfu-demo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
async def served(folder: Path, postgres_home: Path, pool: asyncpg.Pool) -> AsyncIterator[Served]:
    async with serving(folder, postgres_home, pool) as served:
        yield served


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110 — what is awaited comes from PostgreSQL
            await asyncio.sleep(0.02)


async def post(served: Served, path: str, **body: Any) -> httpx.Response:
    return await served.http.post(f"/models/{M}/{path}", json=body)


async def converse(served: Served, number: int) -> tuple[str, str]:
    """The two answers of a conversation of its own."""
    asked = [{"role": "user", "content": f"number {number}"}]
    texts = []
    body = {"model": M, "temperature": 0, "max_tokens": 3, "rag": False}
    for _ in range(2):
        answer = await served.http.post("/v1/chat/completions", json=body | {"messages": asked})
        texts.append(answer.json()["choices"][0]["message"]["content"])
        asked += [{"role": "assistant", "content": texts[-1]}, {"role": "user", "content": "and?"}]
    return texts[0], texts[1]


async def test_a_canary_answers_some_conversations_from_beginning_to_end(served: Served):
    """Sticky: a conversation is all the canary's, or all the champion's; and every turn says whose it was."""
    assert (await post(served, "promote", version="v1")).status_code == 200
    begun = (await post(served, "promote", version="v2", canary=0.5)).json()
    assert (begun["champion"], begun["trial"]["version"], begun["trial"]["share"]) == ("v1", "v2", 0.5)
    said = await asyncio.gather(*(converse(served, number) for number in range(20)))
    assert set(said) == {("xxx", "xxx"), ("yyy", "yyy")}
    assert await served.said(f"{M}:v3", 3) == "zzz"
    told = (await served.http.get(f"/models/{M}/serving")).json()
    whose = [said.count((letter * 3,) * 2) * 2 for letter in "yx"]
    assert [told["watched"][side]["turns"] for side in ("answers", "control_answers")] == whose
    assert told["changes"][0]["kind"] == "canary"


async def test_a_rollback_ends_a_trial_and_a_promotion_makes_it_whole(served: Served):
    """In the time that gateways have; who was asked before keeps answering."""
    await promote(served.registry, M, "v1")
    await try_out(served.registry, M, "v2", "canary", 1.0)
    assert await served.said(M, 3) == "yyy"
    ended = (await post(served, "rollback", reason="enough")).json()
    assert (ended["champion"], ended["previous"], ended["trial"]) == ("v1", None, None)
    assert ended["seconds"] < SWITCH_S
    assert await served.said(M, 3) == "xxx"
    await try_out(served.registry, M, "v2", "canary", 0.1)
    await promote(served.registry, M, "v2")
    assert (await served.registry.desired()).of(M).trial is None
    assert await served.said(M, 3) == "yyy"
    assert [(one.kind, one.version, one.before) for one in await served.registry.changes(M)] == [
        ("promote", "v2", "v1"), ("canary", "v2", "v1"), ("rollback", "v1", "v2"), ("canary", "v2", "v1"),
        ("promote", "v1", None),
    ]  # fmt: skip


async def test_a_shadow_is_kept_and_never_shown(served: Served):
    """Beside what people saw, with how it ended; and it goes with its conversation."""
    await post(served, "promote", version="v2", shadow=1.0)
    answer = await served.chat(M, 4, said="a question")
    assert answer.json()["choices"][0]["message"]["content"] == "abcd"

    async def report() -> Any:
        return (await served.http.get(f"/models/{M}/serving")).json()

    async def kept() -> bool:
        return bool((await report())["shadows"])

    await until(kept)
    told = await report()
    (shadow,) = told["shadows"]
    assert (shadow["answer"]["content"], shadow["shown"]["content"], shadow["shown_by"]) == ("yyyy", "abcd", None)
    assert (shadow["status"], told["unseen"]["turns"], told["unseen"]["unfinished"]) == ("truncated", 1, 1)
    conversation = (await served.http.get(f"/v1/conversations/{shadow['conversation_id']}")).text
    assert "yyyy" not in conversation
    await served.http.delete(f"/v1/conversations/{shadow['conversation_id']}")
    assert not await kept()


async def test_a_shadow_may_be_tried_that_no_gate_has_passed(served: Served):
    """Nobody sees it. A canary answers people: it needs what a promotion needs, or force, which the history keeps."""
    await served.registry.judge(M, "v2", "blocked", ["the loss rose"])
    refused = await post(served, "promote", version="v2", canary=0.5)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_promoted")
    assert "the loss rose" in refused.json()["error"]["message"]
    assert (await post(served, "promote", version="v2", shadow=0.5)).status_code == 200
    assert (await post(served, "promote", version="v2", canary=0.5, force=True)).status_code == 200
    assert [change.forced for change in await served.registry.changes(M)] == [True, False]


async def test_the_champion_cannot_be_tried(served: Served):
    """And what is on trial cannot be retired."""
    await promote(served.registry, M, "v1")
    with pytest.raises(Conflict, match="answers for mindfu-demo already"):
        await try_out(served.registry, M, "v1", "canary", 0.5)
    await try_out(served.registry, M, "v2", "shadow", 0.5)
    with pytest.raises(Conflict, match="on trial"):
        await served.registry.retire(M, "v2")


async def test_a_share_is_above_0_and_at_most_1(served: Served):
    """And an adapter is tried in one way at a time."""
    for body in ({"canary": 0}, {"canary": 1.5}, {"shadow": -1}, {"canary": 0.1, "shadow": 0.1}):
        assert (await post(served, "promote", version="v1", **body)).status_code == 400


async def champion(served: Served) -> str | None:
    return (await served.registry.desired()).of(M).champion


async def test_a_champion_whose_answers_do_not_end_is_taken_back(folder: Path, postgres_home: Path, pool: asyncpg.Pool):
    """By itself, with the numbers in the history; from then on it is blocked."""
    async with serving(folder, postgres_home, pool, QUICK) as watched:
        await fall(watched, pool)


async def fall(watched: Served, pool: asyncpg.Pool) -> None:
    await asyncio.gather(*(watched.chat(M) for _ in range(10)))
    await pool.execute("update turns set status = 'complete'")  # the alphabet never ends
    await promote(watched.registry, M, "v1")
    await asyncio.gather(*(watched.chat(M) for _ in range(10)))

    async def back() -> bool:
        return await champion(watched) is None

    await until(back)
    latest = (await watched.registry.changes(M))[0]
    assert latest.kind == "rollback"
    assert latest.reason
    assert "taken back automatically" in latest.reason
    assert "answers failed or did not end, before 0 of 10" in latest.reason
    with pytest.raises(NotPromoted, match="taken back automatically"):
        await promote(watched.registry, M, "v1")


async def test_a_canary_that_people_dislike_is_taken_back(folder: Path, postgres_home: Path, pool: asyncpg.Pool):
    """Held against the champion's ratings of the same time; the champion goes on."""
    opinions = QUICK.model_copy(update={"max_error_rise": 1.0})  # no answer of these models ends
    async with serving(folder, postgres_home, pool, opinions) as watched:
        await dislike(watched)


async def dislike(watched: Served) -> None:
    await promote(watched.registry, M, "v1")
    await try_out(watched.registry, M, "v2", "canary", 0.5)
    for number in range(40):
        answer = (await watched.chat(M, 1, said=f"question {number}")).json()
        liked = answer["choices"][0]["message"]["content"] == "x"
        rated = {"request_id": answer["id"], "rating": 1 if liked else -1}
        assert (await watched.http.post("/v1/feedback", json=rated)).status_code == 200
        if (await watched.registry.desired()).of(M).trial is None:
            break
    assert await champion(watched) == "v1"
    assert (await watched.registry.desired()).of(M).trial is None
    reason = (await watched.registry.changes(M))[0].reason
    assert reason
    assert "people disliked" in reason
    assert (await watched.registry.adapter(M, "v2")).verdict == "blocked"


async def test_a_rollback_that_came_too_late_changes_nothing(served: Served):
    """Two gateways see the same fall: the second one must not undo the first."""
    await promote(served.registry, M, "v1")
    await promote(served.registry, M, "v2")
    await rollback(served.registry, M, only="v2")
    with pytest.raises(Conflict, match="not what a rollback would take back"):
        await rollback(served.registry, M, only="v2")
    assert await champion(served) == "v1"
