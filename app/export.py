"""Conversations as text to read, and as lines to fine-tune with, in OpenAI's format. Pure functions.

A conversation is a forest of turns; one branch of it is told: at each fork that which is judged best, else the latest.
A correction stands in the place of the answer that it corrects. Answers that nobody should learn from (cut short,
broken off, judged bad) keep their place in a line with `weight: 0`, and are left out at its end. The passages that an
answer was given are no part of a line. What a model called of the server's own tools, and what that came to, stands
before its answer; a step in which a call failed is nothing to learn.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from app.dialects.openai_messages import external
from app.messages import Message, Tool
from app.tools.loop import PAUSE
from app.tools.outcome import FAILED
from app.tools.runner import steps, used
from app.turns import Conversation, RecordedTurn

TRAINING_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")


def branch(turns: Sequence[RecordedTurn]) -> tuple[RecordedTurn, ...]:
    """The turns from a root to a leaf. turns: in the order of recording.

    Of siblings the one whose own rating is best wins, then the one with the best rating behind it, then the one that
    went on latest. A corrected turn counts as rated up.
    """
    children: dict[str | None, list[RecordedTurn]] = {}
    for turn in turns:
        children.setdefault(turn.parent_id, []).append(turn)
    order = {turn.id: number for number, turn in enumerate(turns)}
    best, latest = {turn.id: score(turn) for turn in turns}, dict(order)
    for turn in reversed(turns):  # children come after their parents
        if turn.parent_id in order:
            best[turn.parent_id] = max(best[turn.parent_id], best[turn.id])
            latest[turn.parent_id] = max(latest[turn.parent_id], latest[turn.id])
    path: list[RecordedTurn] = []
    siblings = [turn for turn in turns if turn.parent_id not in order]
    while siblings:
        path.append(max(siblings, key=lambda turn: (score(turn), best[turn.id], latest[turn.id])))
        siblings = children.get(path[-1].id, [])
    return tuple(path)


def score(turn: RecordedTurn) -> float:
    """What people think of a turn: 1 where it was corrected, else their mean rating, 0 where there is none."""
    ratings = [said.rating for said in turn.feedback if said.rating is not None]
    if corrected(turn) is not None:
        return 1.0
    return sum(ratings) / len(ratings) if ratings else 0.0


def corrected(turn: RecordedTurn) -> Message | None:
    """The latest correction of a turn."""
    return next((said.correction for said in reversed(turn.feedback) if said.correction is not None), None)


def worth_learning(turn: RecordedTurn) -> bool:
    """Whether the answer, corrected, may be a training target."""
    if corrected(turn) is not None:
        return True
    said = turn.answer.content.strip() or turn.answer.tool_calls
    return turn.status == "complete" and bool(said) and score(turn) >= 0


def spoken(turn: RecordedTurn) -> tuple[tuple[Message, bool], ...]:
    """What the model said, and whether it was good: calls of the server's tools with their results, then its answer.

    Of an answer that was corrected only that.
    """
    correction = corrected(turn)
    if correction is not None:
        return ((correction, True),)
    kept, text = steps(turn.extras), turn.answer.content
    failed = {step.tool_call_id for step in kept if step.content.startswith(FAILED)}
    for step in kept:
        if step.role == "assistant" and step.content:  # it is a part of the answer's text
            text = text.removeprefix(step.content).removeprefix(PAUSE)
    told = tuple((step, failed.isdisjoint(call.id for call in step.tool_calls)) for step in kept)
    return (*told, (turn.answer.model_copy(update={"content": text}), True))


def training_line(
    path: Sequence[RecordedTurn],
    system: Sequence[tuple[int, Message]] = (),
    *,
    learns: Callable[[RecordedTurn], bool] = worth_learning,
) -> str | None:
    """`{"messages", "tools"}` of a branch. system: prompts, with their places. None: there is nothing to learn.

    learns: whose answers are training targets.
    """
    while path and not learns(path[-1]):
        path = path[:-1]
    if not path:
        return None
    said: list[list[dict[str, Any]]] = []  # for each message that clients know of
    for turn in path:
        said += [[_training(message)] for message in turn.messages]
        taught = learns(turn)
        said.append([_training(message) | _weight(message, good and taught) for message, good in spoken(turn)])
    for place, prompt in system:
        said.insert(place, [_training(prompt)])
    line: dict[str, Any] = {"messages": [message for messages in said for message in messages]}
    if tools := _tools(path):
        line["tools"] = tools
    return json.dumps(line, ensure_ascii=False)


def text(conversation: Conversation) -> str:
    """The branch for people to read."""
    lines = [f"# {conversation.title}", f"{conversation.id}, {conversation.created_at:%Y-%m-%d %H:%M} UTC", ""]
    for turn in branch(conversation.turns):
        answer = corrected(turn)
        for message in (*turn.messages, answer or turn.answer):
            lines += [_spoken(message), ""]
        notes: list[str] = [] if turn.status == "complete" else [turn.status]
        notes += [f"called {call}" for call in used(turn.extras)]
        notes += ["corrected"] if answer else []
        notes += [f"rated {said.rating:g}" for said in turn.feedback if said.rating is not None]
        notes += [f"comment: {said.comment}" for said in turn.feedback if said.comment]
        lines += [f"({'; '.join(notes)})", ""] if notes else []
    return "\n".join(lines) + "\n"


def _spoken(message: Message) -> str:
    calls = [f"[calls {call.name} {call.arguments}]" for call in message.tool_calls]
    return f"{message.role}: " + "\n".join([*([message.content] if message.content else []), *calls])


def _training(message: Message) -> dict[str, Any]:
    told = external(message)
    return {field: told[field] for field in TRAINING_FIELDS if field in told}


def _weight(message: Message, good: bool) -> dict[str, int]:
    return {"weight": 0} if message.role == "assistant" and not good else {}


def _tools(path: Sequence[RecordedTurn]) -> list[dict[str, Any]]:
    """What was offered on the way; of one name, the latest."""
    offered: dict[str, Tool] = {}
    for turn in path:
        kept = turn.extras.get("tools")
        for tool in kept if isinstance(kept, list) else ():
            made = Tool.model_validate(tool)
            offered[made.name] = made
    return [{"type": "function", "function": _function(tool)} for tool in offered.values()]


def _function(tool: Tool) -> dict[str, Any]:
    return {name: value for name, value in tool.model_dump(exclude={"strict"}).items() if value}
