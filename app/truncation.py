"""Shorten a chat to what fits, by leaving out its oldest turns. Pure."""

from collections.abc import Sequence

from app.messages import Message


def without_first(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    """The chat without so many of its oldest messages, system prompts not counted and not left out."""
    spoken = [index for index, message in enumerate(messages) if message.role != "system"]
    left_out = frozenset(spoken[:count])
    return tuple(message for index, message in enumerate(messages) if index not in left_out)


def without_oldest(messages: Sequence[Message], tokens: Sequence[int], excess: int) -> tuple[Message, ...]:
    """The chat without its oldest turns, as many as hold the excess; system prompts and the last turn always stay.

    A turn begins with a user message, so that no tool result is parted from its call. tokens: of each message; excess:
    tokens that are too many. Unchanged where there is one turn only.
    """
    begins = [index for index, message in enumerate(messages) if message.role == "user"]
    spoken = [index for index, message in enumerate(messages) if message.role != "system"]
    saved, kept_from = 0, spoken[0] if spoken else 0
    for begin in begins:
        if begin > kept_from:
            saved += sum(tokens[index] for index in spoken if kept_from <= index < begin)
            kept_from = begin
        if saved >= excess:
            break
    return tuple(message for index, message in enumerate(messages) if index >= kept_from or message.role == "system")
