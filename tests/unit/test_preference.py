"""What a judge's words are worth: a verdict in both orders, or no opinion."""

import pytest

from app.messages import Message
from train import preference
from train.preference import Pair, Winner


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("A is wrong. [[B]]", "B"),
        ("[[A]] is what I thought at first, but [[C]]", "C"),
        ("Answer A is better.", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts(said: str, verdict: str | None):
    """Judges think aloud."""
    assert preference.verdict(said) == verdict


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ("B", "A", "tuned"),  # the base stood first, then the tuned model
        ("A", "B", "base"),
        ("C", "C", "tie"),
        ("A", "A", "swayed"),
        ("B", "B", "swayed"),
        ("A", "C", "swayed"),
        (None, "A", "unreadable"),
        ("B", None, "unreadable"),
    ],
)
def test_an_answer_wins_where_it_wins_in_both_orders(first: str | None, second: str | None, winner: Winner):
    """A judge who names whatever stands first has no opinion."""
    assert preference.combined(first, second) == winner  # type: ignore[arg-type]


def pair(conversation: str) -> Pair:
    return Pair(conversation, (Message(role="user", content="Colour?"),), "blue", "red", "blue")


def test_a_conversation_counts_once_however_many_answers_it_has():
    """Three wins in one conversation and a loss in another: nobody is ahead."""
    pairs = [pair("a"), pair("a"), pair("a"), pair("b"), pair("c"), pair("d")]
    winners: list[Winner | None] = ["tuned", "tuned", "tuned", "base", "unreadable", None]
    told = preference.preference("judge", pairs, winners, tokens=9)
    assert (told.wins, told.losses, told.unreadable, told.left_out) == (3, 1, 1, 1)
    assert told.score is not None
    assert (told.score.mean, told.score.size) == (0.0, 2)
    assert preference.preference("judge", pairs[4:], winners[4:], tokens=9).score is None


def test_the_question_shows_the_answers_in_the_order_asked():
    """And what the answer should be; of very long texts a part."""
    asked = preference.question(pair("a"), "first", "second" * 9999)
    assert (
        asked.index("[Reference answer]\nblue") < asked.index("[Answer A]\nfirst") < asked.index("[Answer B]\nsecond")
    )
    assert len(asked) < 10_000
