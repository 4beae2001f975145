"""Which of two answers a judge prefers: a model behind any OpenAI- or Anthropic-compatible URL, asked twice.

The second time the answers stand in the other order. An answer wins where the judge names it both times; who prefers
what stands first has no opinion, and is counted as swayed. The question to the judge is that of MT-Bench (Zheng et al.
2023, arXiv:2306.05685), with what the answer should be beside it. What the judge said is kept at once, so that an
evaluation that was killed never pays twice.
"""

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, SecretStr

from app.errors import InvalidRequest
from app.messages import Message, Strict
from app.settings import Secrets
from train import lines
from train.results import Preference
from train.scores import bootstrap
from train.teacher import Dialect, Teacher

Letter = Literal["A", "B", "C"]
Winner = Literal["tuned", "base", "tie", "swayed", "unreadable"]

SYSTEM = (
    "You are an impartial judge of two answers to the last message of a conversation. Say which is better: correct, "
    "complete, helpful, to the point, and in the form that was asked for. A reference answer is given; an answer may "
    "be as good in other words. Neither the order of the answers nor their length counts. Explain in one or two "
    "sentences, then end with your verdict: [[A]] if answer A is better, [[B]] if answer B is, [[C]] for a tie."
)
VERDICT = re.compile(r"\[\[([ABC])\]\]")
SHOWN_CHARS = 8000  # of a conversation, its end; and of an answer, its beginning


class Judge(Strict):
    """The section `judge` of the parameters of the stage `evaluate`. The key is in MINDFU_JUDGE_KEY."""

    url: str = Field(min_length=1)  # up to /v1
    model: str = Field(min_length=1)
    dialect: Dialect = "openai"
    answers: int = Field(100, ge=1)  # of each set, of those that are generated
    max_tokens: int = Field(512, ge=1)  # of the judge's explanation and verdict
    budget_tokens: int = Field(1_000_000, ge=1)  # prompts and verdicts; once they are used, no further pair is judged
    concurrency: int = Field(4, ge=1)
    timeout_s: float = Field(120.0, gt=0)

    def check(self) -> None:
        """Raises InvalidRequest for what is no address."""
        if not self.url.startswith(("http://", "https://")):
            raise InvalidRequest(f"'{self.url}' is no http:// or https:// address.", "evaluate.judge.url")


class Pair(NamedTuple):
    """Two answers to the same question. conversation: its id."""

    conversation: str
    asked: tuple[Message, ...]
    reference: str
    base: str
    tuned: str


async def judged(judge: Judge, pairs: Sequence[Pair], home: Path) -> tuple[list[Winner | None], Preference]:
    """Who wins each pair, and the sum of it. None: the budget was used. home: where the judge's words are kept.

    Raises Unavailable where the judge stays away, InvalidRequest where it refuses.
    """
    key: SecretStr | None = Secrets.from_env().judge_key
    asking = Asking(judge, key.get_secret_value() if key else None, home)
    tasks = [asyncio.create_task(asking.winner(pair)) for pair in pairs]
    try:
        winners = await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # where one has failed, the others need not go on
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asking.close()
    return winners, preference(judge.model, pairs, winners, asking.spent)


def preference(model: str, pairs: Sequence[Pair], winners: Sequence[Winner | None], tokens: int) -> Preference:
    """How often each wins. Where nobody does, nobody is preferred."""
    worth = {"tuned": 1.0, "base": -1.0}
    by_conversation: dict[str, list[float]] = {}
    for pair, winner in zip(pairs, winners, strict=True):
        if winner is not None and winner != "unreadable":
            by_conversation.setdefault(pair.conversation, []).append(worth.get(winner, 0.0))
    counts = Counter(winners)
    means = [sum(each) / len(each) for each in by_conversation.values()]
    return Preference(
        judge=model,
        wins=counts["tuned"],
        losses=counts["base"],
        ties=counts["tie"],
        swayed=counts["swayed"],
        unreadable=counts["unreadable"],
        left_out=counts[None],
        tokens=tokens,
        score=bootstrap(means) if means else None,
    )


class Asking:
    """Asks one judge, and keeps what it says. spent: tokens, those of before included."""

    def __init__(self, judge: Judge, key: str | None, home: Path) -> None:
        self._judge, self.spent = judge, 0
        self._teacher = Teacher(
            *(judge.url, judge.dialect, judge.model),
            key=key, timeout_s=judge.timeout_s, who="judge", setting="evaluate.judge.url",
        )  # fmt: skip
        self._free = asyncio.Semaphore(judge.concurrency)
        self._file = home / "runs" / "judges" / f"{_hash(judge.url, judge.model, str(judge.max_tokens))}.jsonl"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        kept = map(json.loads, lines.texts(self._file)) if self._file.exists() else ()
        self._kept: dict[str, tuple[str, int]] = {told["asked"]: (told["said"], told["tokens"]) for told in kept}

    async def close(self) -> None:
        await self._teacher.close()

    async def winner(self, pair: Pair) -> Winner | None:
        """Of one pair. Two answers that are the same tie, and nobody is asked."""
        if pair.base == pair.tuned:
            return "tie"
        async with self._free:
            if self.spent >= self._judge.budget_tokens:
                return None
            return combined(
                verdict(await self._said(question(pair, pair.base, pair.tuned))),
                verdict(await self._said(question(pair, pair.tuned, pair.base))),
            )

    async def _said(self, asked: str) -> str:
        name = _hash(SYSTEM, asked)
        if name not in self._kept:
            messages = Message(role="system", content=SYSTEM), Message(role="user", content=asked)
            answer = await self._teacher.ask(messages, (), temperature=0.0, max_tokens=self._judge.max_tokens)
            said, tokens = answer.message.content, answer.prompt_tokens + answer.answer_tokens
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"asked": name, "said": said, "tokens": tokens}, ensure_ascii=False) + "\n")
            self._kept[name] = said, tokens
        said, tokens = self._kept[name]
        self.spent += tokens
        return said


def question(pair: Pair, first: str, second: str) -> str:
    """What the judge is asked of one pair, in one order."""
    said = "\n\n".join(f"{message.role}: {message.content}" for message in pair.asked)
    parts = {
        "Conversation": said[-SHOWN_CHARS:],
        "Reference answer": pair.reference[:SHOWN_CHARS],
        "Answer A": first[:SHOWN_CHARS],
        "Answer B": second[:SHOWN_CHARS],
    }
    return "\n\n".join(f"[{name}]\n{text}\n[End of {name.lower()}]" for name, text in parts.items())


def verdict(said: str) -> Letter | None:
    """The last one that a judge's answer has. None: it has none."""
    found = VERDICT.findall(said)
    letter: Letter | None = found[-1] if found else None
    return letter


def combined(first: Letter | None, second: Letter | None) -> Winner:
    """Who wins: the base stood first when the first verdict was given, and second when the second one was."""
    if first is None or second is None:
        return "unreadable"
    if (first, second) == ("B", "A"):
        return "tuned"
    if (first, second) == ("A", "B"):
        return "base"
    return "tie" if first == second == "C" else "swayed"


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
