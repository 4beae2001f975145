"""An answer put together: every piece in its place, whichever answer and whichever call it belongs to."""

from hypothesis import given
from hypothesis import strategies as st

from app.answer import Choice, gather, merged
from app.messages import Alternative, Delta, Message, TokenLogprob, ToolCall, ToolCallDelta


def test_the_pieces_of_several_answers_come_interleaved_and_are_told_apart():
    """Text to text and reasoning to reasoning, by `choice`; an answer without a piece is an empty one."""
    deltas = [Delta("a", 1, 2), Delta("b", 1, 0, reasoning="hm"), Delta("c", 1, 2), Delta("", 1, 0, reasoning="!")]
    assert gather(deltas, 3) == (Choice("b", "hm!"), Choice(), Choice("ac"))


def test_calls_are_merged_from_their_pieces():
    """Id and name come once, the arguments in any number of pieces, of several calls in turn."""
    pieces = [
        ToolCallDelta(0, '{"a"', id="c0", name="f"),
        ToolCallDelta(1, "", id="c1", name="g"),
        ToolCallDelta(0, ": 1}"),
        ToolCallDelta(1, "{}"),
    ]
    calls = (ToolCall(id="c0", name="f", arguments='{"a": 1}'), ToolCall(id="c1", name="g", arguments="{}"))
    assert merged(pieces) == calls
    (choice,) = gather([Delta("x", 1, tool_calls=tuple(pieces[:2])), Delta("", 2, tool_calls=tuple(pieces[2:]))])
    assert choice.message() == Message(role="assistant", content="x", tool_calls=calls)


def test_logprobs_stay_in_the_order_of_their_tokens():
    """One for each token that came."""
    tokens = [TokenLogprob(Alternative(text, text.encode(), -1.0), ()) for text in "abc"]
    (choice,) = gather([Delta("ab", 2, logprobs=tuple(tokens[:2])), Delta("c", 1, logprobs=tuple(tokens[2:]))])
    assert choice.logprobs == tuple(tokens)


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=3)), max_size=20))
def test_no_piece_is_lost(pieces: list[tuple[int, str]]):
    """However the answers interleave."""
    gathered = gather([Delta(text, 1, choice) for choice, text in pieces], 3)
    assert [choice.text for choice in gathered] == ["".join(t for c, t in pieces if c == n) for n in range(3)]
