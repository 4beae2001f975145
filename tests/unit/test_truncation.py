"""`truncation: auto` leaves out the oldest turns, and says how many messages those were."""

import pytest

from app.messages import Message, Role
from app.truncation import without_first, without_oldest

ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def chat(text: str) -> tuple[Message, ...]:
    """One message for each letter and number."""
    return tuple(Message(role=ROLES[part[0]], content=part) for part in text.split())


@pytest.mark.parametrize(
    ("excess", "kept"),
    [
        (1, "s1 u2 a2 t2 a3 s3 u4"),  # the first turn holds 20 tokens
        (20, "s1 u2 a2 t2 a3 s3 u4"),
        (21, "s1 s3 u4"),  # the second turn goes whole: no result without its call
        (1000, "s1 s3 u4"),  # system prompts and the last turn always stay
    ],
)
def test_whole_turns_go_from_the_oldest_on(excess: int, kept: str) -> None:
    """Ten tokens a message."""
    said = chat("s1 u1 a1 u2 a2 t2 a3 s3 u4")
    assert without_oldest(said, [10] * len(said), excess) == chat(kept)


@pytest.mark.parametrize("said", ["u1", "s1 u1", "a1", "s1", ""])
def test_one_turn_cannot_be_shortened(said: str) -> None:
    """The engine then says that it is too long."""
    assert without_oldest(chat(said), [10] * len(chat(said)), 5) == chat(said)


def test_what_stands_before_the_first_question_goes_with_it() -> None:
    """A chat may begin with an assistant's greeting."""
    assert without_oldest(chat("a0 u1 a1 u2"), [10] * 4, 5) == chat("u1 a1 u2")


@pytest.mark.parametrize(("count", "kept"), [(0, "s1 u1 a1 s2 u2"), (1, "s1 a1 s2 u2"), (2, "s1 s2 u2"), (9, "s1 s2")])
def test_the_first_messages_are_left_out_and_system_prompts_stay(count: int, kept: str) -> None:
    """So many that were said; it is how a turn that was recorded tells what the model did not see."""
    assert without_first(chat("s1 u1 a1 s2 u2"), count) == chat(kept)
