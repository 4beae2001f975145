"""Turns as rows of the database, and rows as turns. Text passes through app.nul both ways."""

from collections.abc import Iterable
from typing import TypeVar

import asyncpg
from pydantic import JsonValue, TypeAdapter

from app.messages import Message, Passage, Sampling, Timings, Usage
from app.nul import hide, hide_json, show, show_json
from app.turns import DROPPED, ConversationSummary, Feedback, RecordedTurn, Turn

T = TypeVar("T")

MESSAGES = TypeAdapter(tuple[Message, ...])
RESENT = TypeAdapter(dict[int, Message])
PASSAGES = TypeAdapter(tuple[Passage, ...])
TEXTS = TypeAdapter(tuple[str, ...])
EXTRAS = TypeAdapter(dict[str, JsonValue])
ANSWER, SAMPLING = TypeAdapter(Message), TypeAdapter(Sampling)


def path_messages(path: Iterable[asyncpg.Record]) -> tuple[Message, ...]:
    """The messages of a path of turns, the last answer included, as they were when its last turn was asked."""
    messages: list[Message] = []
    for turn in path:
        for index, message in load(RESENT, turn["resent"]).items():
            messages[index] = message
        messages += (*load(MESSAGES, turn["messages"]), load(ANSWER, turn["answer"]))
    return tuple(messages)


def passages(row: asyncpg.Record) -> tuple[Passage, ...]:
    """The sources of a turn."""
    return load(PASSAGES, row["sources"])


def dropped(row: asyncpg.Record) -> int:
    """How many of the oldest messages the model was not shown."""
    found = load(EXTRAS, row["extras"]).get(DROPPED, 0)
    return found if isinstance(found, int) else 0


def columns(turn: Turn) -> tuple[object, ...]:
    """The columns from `answer` to `reasoning_tokens`."""
    usage, timings = turn.usage, turn.timings
    return (
        messages_json(ANSWER, turn.answer),
        hide(turn.model),
        turn.adapter and hide(turn.adapter),
        json(PASSAGES, turn.sources),
        turn.placement,
        json(SAMPLING, turn.sampling),
        json(TEXTS, turn.stop),
        turn.max_tokens,
        usage and usage.prompt_tokens,
        usage and usage.completion_tokens,
        usage and usage.cached_tokens,
        timings and timings.queued_s,
        timings and timings.prefill_s,
        timings and timings.decode_s,
        turn.first_token_s,
        turn.latency_s,
        turn.finish_reason,
        turn.status,
        turn.error and hide(turn.error),
        turn.client and hide(turn.client),
        json(EXTRAS, turn.extras),
        turn.created_at,
        usage and usage.reasoning_tokens,
    )


def feedback(row: asyncpg.Record) -> Feedback:
    return Feedback(
        author=show(row["author"]),
        rating=row["rating"],
        comment=row["comment"] and show(row["comment"]),
        correction=row["correction"] and load(ANSWER, row["correction"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def recorded_turn(row: asyncpg.Record, feedback: Iterable[Feedback] = ()) -> RecordedTurn:
    usage = None if row["prompt_tokens"] is None else {field: row[field] or 0 for field in Usage.model_fields}
    timings = None if row["queued_s"] is None else {field: row[field] for field in Timings.model_fields}
    return RecordedTurn(
        id=str(row["id"]),
        parent_id=row["parent_id"] and str(row["parent_id"]),
        request_id=show(row["request_id"]),
        messages=load(MESSAGES, row["messages"]),
        answer=load(ANSWER, row["answer"]),
        model=show(row["model"]),
        adapter=row["adapter"] and show(row["adapter"]),
        sources=load(PASSAGES, row["sources"]),
        placement=row["placement"],
        sampling=load(SAMPLING, row["sampling"]),
        stop=load(TEXTS, row["stop"]),
        max_tokens=row["max_tokens"],
        usage=usage and Usage.model_validate(usage),
        timings=timings and Timings.model_validate(timings),
        first_token_s=row["first_token_s"],
        latency_s=row["latency_s"],
        finish_reason=row["finish_reason"],
        status=row["status"],
        error=row["error"] and show(row["error"]),
        client=row["client"] and show(row["client"]),
        extras=load(EXTRAS, row["extras"]),
        created_at=row["created_at"],
        feedback=tuple(feedback),
    )


def summary(row: asyncpg.Record) -> ConversationSummary:
    return ConversationSummary(
        id=str(row["id"]),
        title=show(row["title"]),
        turns=row["turns"],
        model=show(row["model"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def json(adapter: TypeAdapter[T], value: T) -> str:
    return hide_json(adapter.dump_json(value).decode())


def messages_json(adapter: TypeAdapter[T], value: T) -> str:
    """Messages have many empty fields, which are left out."""
    return hide_json(adapter.dump_json(value, exclude_defaults=True).decode())


def load(adapter: TypeAdapter[T], text: str) -> T:
    return adapter.validate_json(show_json(text))
