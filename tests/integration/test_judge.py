"""A judge behind an OpenAI-compatible URL, which is our own gateway on a socket: what it prefers, and at what price."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from app.errors import InvalidRequest, Unavailable
from app.messages import Delta, Done, End, Generate, Message, Timings, Usage
from app.settings import Settings
from deployments.llama_cpp import LlamaCpp
from tests.champions import make, settings
from tests.gateway import Echo, whole
from train import preference, teacher
from train.preference import Judge, Pair

pytestmark = pytest.mark.integration


class Verdicts(Echo):
    """A model that says what a function of the question says. asked: how often it was."""

    def __init__(self, likes: str | None) -> None:
        self.likes, self.asked = likes, 0

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done]:
        self.asked += 1
        question = request.messages[-1].content
        first, second = (question.split(f"[Answer {letter}]\n")[1].split("\n[End")[0] for letter in "AB")
        if self.likes is None:
            said = "[[A]]"
        else:
            said = "[[C]]" if (self.likes in first) == (self.likes in second) else f"[[{'AB'[self.likes in second]}]]"
        yield Delta(f"I see. {said}", 3)
        yield Done(
            (End("stop"),), Usage(prompt_tokens=7, completion_tokens=3), Timings(queued_s=0, prefill_s=0, decode_s=0)
        )


@asynccontextmanager
async def url_of(home: Path, llm: object, all_settings: Settings | None = None) -> AsyncIterator[str]:
    """A gateway's address."""
    async with whole(home, all_settings, llm=llm) as gateway:
        config = uvicorn.Config(gateway.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 — uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.should_exit = True
            await running


def pairs(count: int = 6) -> list[Pair]:
    """The tuned model says blue, the base red."""
    asked = (Message(role="user", content="Which colour?"),)
    return [Pair(f"c{n}", (*asked, Message(role="user", content=str(n))), "blue", "red", "blue") for n in range(count)]


def judge(url: str, **changes: object) -> Judge:
    return Judge.model_validate({"url": url, "model": "mindfu-demo", **changes})


async def test_what_the_judge_prefers_wins_in_either_order(postgres_home: Path, tmp_path: Path):
    """With an interval; and an answer that both gave ties without a question."""
    llm = Verdicts("blue")
    async with url_of(postgres_home, llm) as url:
        winners, told = await preference.judged(judge(url), [*pairs(), pairs()[0]._replace(base="blue")], tmp_path)
    assert winners == ["tuned"] * 6 + ["tie"]
    assert (told.wins, told.losses, llm.asked, told.tokens) == (6, 0, 12, 120)
    assert told.score is not None
    assert told.score.low > 0


async def test_a_judge_who_names_what_stands_first_prefers_nobody(postgres_home: Path, tmp_path: Path):
    """Which is why it is asked twice."""
    async with url_of(postgres_home, Verdicts(None)) as url:
        winners, told = await preference.judged(judge(url), pairs(), tmp_path)
    assert (set(winners), told.swayed) == ({"swayed"}, 6)
    assert told.score is not None
    assert told.score.mean == 0


async def test_what_the_judge_said_is_not_paid_for_twice(postgres_home: Path, tmp_path: Path):
    """An evaluation that was killed asks the rest; and a budget ends the questions."""
    llm = Verdicts("blue")
    async with url_of(postgres_home, llm) as url:
        winners, told = await preference.judged(judge(url, budget_tokens=40, concurrency=1), pairs(), tmp_path)
        assert winners == ["tuned", "tuned", None, None, None, None]
        assert (told.left_out, told.tokens, llm.asked) == (4, 40, 4)
        await preference.judged(judge(url), pairs(), tmp_path)
    assert llm.asked == 12


async def test_an_engine_that_cannot_judge_prefers_nobody(postgres_home: Path, tmp_path: Path):
    """A served model that says the alphabet, whatever it is asked: no verdict, no score."""
    folder = make(tmp_path)
    own = Settings(llm=settings(folder).model_copy(update={"window": 1024}))
    replica = LlamaCpp(own.llm, postgres_home)
    try:
        async with url_of(postgres_home, replica, own) as url:
            winners, told = await preference.judged(judge(url, max_tokens=8), pairs(2), tmp_path)
    finally:
        replica.close()
    assert (winners, told.unreadable, told.score) == (["unreadable"] * 2, 2, None)


async def test_a_judge_that_refuses_or_is_away_is_named(
    postgres_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the setting to look at."""
    async with url_of(postgres_home, Verdicts("blue")) as url:
        with pytest.raises(InvalidRequest, match=r"The judge at .* refuses: 404") as refused:
            await preference.judged(judge(url, model="nobody"), pairs(), tmp_path)
    assert refused.value.param == "evaluate.judge.url"
    monkeypatch.setattr(teacher, "LONGEST_WAIT_S", 0.0)
    with pytest.raises(Unavailable, match="judge at"):
        await preference.judged(judge(url), pairs(1), tmp_path)
    with pytest.raises(InvalidRequest, match="no http"):
        judge("ftp://x").check()
