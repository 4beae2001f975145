"""The regression set: what a model must still do, whatever it learns. Fixed questions, each with a check of the answer.

    {"id": "greets", "about": "manners", "messages": […], "passages": […], "expect": {"contains": ["hello"]}}

An item counts where the base passes it and the tuned model does not. The set that comes along is small and meant for
any model, the demo model included; give your own with --input regression=FILE.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from app.errors import InvalidRequest
from app.messages import Message, Passage, Strict, Tool
from app.prompt import augment
from train import lines
from train.scores import structured
from train.serving import Question, Said

OWN = Path(__file__).with_name("regression.jsonl")


class Source(Strict):
    """A passage that the question comes with, as retrieval would put it there."""

    title: str
    text: str


class Expect(Strict):
    """All that is given must hold of the answer. Texts are compared without regard to case.

    call: the function that must be called, "" for none.
    """

    contains: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    matches: str | None = None  # a regular expression, anywhere in it
    json_object: bool = False
    call: str | None = None
    max_chars: int | None = Field(None, ge=1)
    ends: bool = True  # by itself, within the limit

    @model_validator(mode="after")
    def expression_is_one(self) -> Self:
        try:
            re.compile(self.matches or "")
        except re.error as error:
            message = f"'{self.matches}' is no regular expression: {error}"
            raise ValueError(message) from error
        return self

    def failure(self, said: Said) -> str | None:
        """What is wrong with an answer; None: nothing."""
        text = said.message.content
        calls = [call.name for call in said.message.tool_calls]
        checks = (
            (said.problem, said.problem is None),
            ("it does not end", said.ended or not self.ends),
            *((f"it lacks '{part}'", part.lower() in text.lower()) for part in self.contains),
            *((f"it has '{part}'", part.lower() not in text.lower()) for part in self.lacks),
            (f"it does not match {self.matches}", self.matches is None or bool(re.search(self.matches, text))),
            ("it is no JSON", not self.json_object or structured(text)),
            (f"it calls {', '.join(calls) or 'nothing'}", self.call is None or calls == [self.call] * bool(self.call)),
            (f"it has {len(text)} characters, of {self.max_chars}", len(text) <= (self.max_chars or len(text))),
        )
        return next((problem for problem, holds in checks if not holds), None)


class Item(Strict):
    """One question of the set. about: what it is a case of."""

    id: str
    about: str
    messages: tuple[Message, ...] = Field(min_length=1)
    passages: tuple[Source, ...] = ()
    tools: tuple[Tool, ...] = ()
    expect: Expect

    def question(self) -> Question:
        """As the gateway would ask it."""
        found = [
            Passage(document_id=f"d{n}", collection="default", title=source.title, chunk=0, text=source.text, score=1.0,
                    start=0, end=len(source.text))
            for n, source in enumerate(self.passages)
        ]  # fmt: skip
        return Question(self.id, augment(self.messages, found), self.tools)


class Outcome(Strict):
    """What became of an item. base, tuned: the answers; the failures are None where the check passed."""

    id: str
    about: str
    base: str
    tuned: str
    base_failure: str | None
    tuned_failure: str | None

    @property
    def broken(self) -> bool:
        """The base could do it, and the tuned model cannot."""
        return self.base_failure is None and self.tuned_failure is not None


def read(path: Path) -> tuple[Item, ...]:
    """The items of a file. Raises InvalidRequest with the line that is wrong."""
    return tuple(_items(path))


def _items(path: Path) -> Iterator[Item]:
    seen: set[str] = set()
    for number, text in enumerate(lines.texts(path), start=1):
        try:
            item = Item.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            message = f"{path}, line {number}: {where}: {first['msg']}"
            raise InvalidRequest(message, "regression") from error
        if item.id in seen:
            message = f"{path}, line {number}: the id '{item.id}' is there already."
            raise InvalidRequest(message, "regression")
        seen.add(item.id)
        yield item


def compared(items: Sequence[Item], base: Sequence[Said], tuned: Sequence[Said]) -> tuple[Outcome, ...]:
    """Item by item, what both said and whether it passes."""
    return tuple(
        Outcome(
            id=item.id,
            about=item.about,
            base=_shown(before),
            tuned=_shown(after),
            base_failure=item.expect.failure(before),
            tuned_failure=item.expect.failure(after),
        )
        for item, before, after in zip(items, base, tuned, strict=True)
    )


def _shown(said: Said) -> str:
    calls = "".join(f" → {call.name}({call.arguments})" for call in said.message.tool_calls)
    return said.message.content + calls


def dump(outcomes: Sequence[Outcome]) -> str:
    """As JSON lines."""
    return "".join(json.dumps(outcome.model_dump(), ensure_ascii=False) + "\n" for outcome in outcomes)
