"""Recorded conversations as lines to learn from. Pure functions over app/turns.py.

Of its own answers a model learns only those that people corrected or rated up: one that learns from unrated answers of
its own learns its own mistakes. Answers from elsewhere that were imported are learnt unless somebody rated them down.
"""

from collections.abc import Iterator, Mapping, Sequence

from app.export import branch, corrected, score, spoken, training_line, worth_learning
from app.messages import Message, Tool
from app.prompt import augment
from app.turns import Conversation, RecordedTurn
from train import lines
from train.lines import Line, Metadata, Preference

Asked = Mapping[str, tuple[Message, ...]]
"""The messages of each turn's request, system prompts included, by the turn's id."""


def taught(turn: RecordedTurn) -> bool:
    """Whether an answer, corrected, is a training target."""
    if corrected(turn) is not None:
        return True
    return worth_learning(turn) and (score(turn) > 0 or "imported" in turn.extras)


def whole(conversation: Conversation, asked: Asked, tenant: str) -> Line | None:
    """The branch that is rated best, else the latest, as one line. None: nothing of it is to be learnt."""
    path = branch(conversation.turns)
    system = [(place, message) for place, message in enumerate(asked[path[-1].id]) if message.role == "system"]
    told = training_line(path, system, learns=taught)
    if told is None:
        return None
    line = lines.parse(told)
    return line._replace(metadata=_metadata(conversation, path, tenant))


def with_sources(conversation: Conversation, asked: Asked, tenant: str) -> Iterator[Line]:
    """Each taught answer of that branch as a line of its own, behind the passages that the model saw for it.

    Earlier answers stand there as they were corrected: a model that learnt them will have said so.
    """
    path = branch(conversation.turns)
    for place, turn in enumerate(path):
        if taught(turn):
            prompt = augment(improved(asked[turn.id], path[:place]), turn.sources, turn.placement)
            said = spoken(turn)
            messages = (*prompt, *(message for message, _ in said))
            weights = (*(0 for _ in prompt), *(int(good and message.role == "assistant") for message, good in said))
            yield Line(messages, weights, _tools(turn), _metadata(conversation, (turn,), tenant))


def improved(messages: Sequence[Message], earlier: Sequence[RecordedTurn]) -> tuple[Message, ...]:
    """A request with the corrections of the answers that it quotes. earlier: the turns before it, in their order.

    What it quotes otherwise than it was given stays as it is.
    """
    made = list(messages)
    start = 0
    for turn in earlier:
        quoted = (place for place in range(start, len(made)) if made[place].role == "assistant")
        place = next((place for place in quoted if _words(made[place]) == _words(turn.answer)), None)
        if place is not None:
            made[place] = corrected(turn) or made[place]
            start = place + 1
    return tuple(made)


def preferences(conversation: Conversation, asked: Asked, tenant: str, *, sources: bool) -> Iterator[Preference]:
    """Corrections before what they correct, and of answers to the same question the best before the worst."""
    for turn in conversation.turns:
        better = corrected(turn)
        if better is not None and _said(turn.answer) and _words(better) != _words(turn.answer):
            yield _preference(conversation, turn, asked, (better, turn.answer), tenant, sources=sources)
    questions: dict[object, list[RecordedTurn]] = {}
    for turn in conversation.turns:
        questions.setdefault((turn.parent_id, turn.messages), []).append(turn)
    for siblings in questions.values():
        best, worst = max(siblings, key=score), min(siblings, key=score)
        answers = corrected(best) or best.answer, worst.answer
        if best is not worst and score(best) > 0 > score(worst) and all(map(_said, answers)):
            yield _preference(conversation, worst, asked, answers, tenant, sources=sources)


def _preference(
    conversation: Conversation,
    turn: RecordedTurn,
    asked: Asked,
    answers: tuple[Message, Message],
    tenant: str,
    *,
    sources: bool,
) -> Preference:
    prompt = augment(asked[turn.id], turn.sources, turn.placement) if sources else asked[turn.id]
    return Preference(prompt, *answers, _tools(turn), _metadata(conversation, (turn,), tenant))


def _tools(turn: RecordedTurn) -> tuple[Tool, ...]:
    told = training_line((turn,), learns=_always)
    return lines.parse(told).tools if told else ()


def _always(_: RecordedTurn) -> bool:
    return True


def _metadata(conversation: Conversation, path: Sequence[RecordedTurn], tenant: str) -> Metadata:
    return {
        "id": conversation.id,
        "conversation": conversation.id,
        "turns": [turn.id for turn in path],
        "tenant": tenant,
        "model": path[-1].model,
        "rating": max(score(turn) for turn in path),
    }


def _said(message: Message) -> bool:
    return bool(message.content.strip() or message.tool_calls)


def _words(message: Message) -> object:
    return message.content.strip(), [(call.name, call.arguments) for call in message.tool_calls]
