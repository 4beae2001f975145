"""Text that leaves the engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llama.text import AnswerText


def sent(pieces: list[bytes], *stop: str) -> tuple[list[str], str, bool]:
    text = AnswerText(stop)
    return [text.push(piece) for piece in pieces], text.finish(), text.stopped


def test_a_character_is_sent_when_it_is_complete():
    """An accent is two bytes, an emoji four; tokens may cut them anywhere."""
    pieces = [b"a\xc3", b"\xa9", b"\xf0\x9f", b"\x98", b"\x80!"]
    assert sent(pieces) == (["a", "é", "", "", "😀!"], "", False)


def test_bytes_that_are_no_text_become_the_replacement_character():
    """A stream is always valid UTF-8."""
    assert sent([b"\xff", b"a"]) == (["�", "a"], "", False)


def test_half_a_character_at_the_end_is_dropped():
    """An answer may reach its limit within a character."""
    assert sent([b"a", b"\xf0\x9f"]) == (["a", ""], "", False)


def test_a_stop_string_across_tokens_ends_the_answer_in_front_of_it():
    """Nothing of it, and nothing behind it, is ever sent."""
    assert sent([b"one#", b"#", b"#two", b"three"], "###") == (["one", "", "", ""], "", True)


def test_what_turns_out_to_be_no_stop_string_is_sent_after_all():
    """Held back only as long as it could still become one."""
    assert sent([b"a#", b"#", b"b"], "###") == (["a", "", "##b"], "", False)


def test_what_is_held_back_at_the_end_is_sent():
    """No more tokens come, so it is no stop string."""
    assert sent([b"a##"], "###") == (["a"], "##", False)


def test_the_first_of_several_stop_strings_counts():
    """Where two match, the one that is complete first ends the answer."""
    assert sent([b"abcdef"], "ef", "cd", "bcdef") == (["ab"], "", True)


@given(st.text(alphabet="ab#é", max_size=30), st.lists(st.text(alphabet="ab#é", min_size=1, max_size=3), max_size=4))
def test_cutting_into_tokens_changes_nothing(text, stop):
    """Byte by byte the answer is the same as in one piece, and holds no stop string."""
    pieces, rest, stopped = sent([bytes([byte]) for byte in text.encode()], *stop)
    whole, whole_rest, _ = sent([text.encode()], *stop)
    answer = "".join(pieces) + rest
    assert answer == "".join(whole) + whole_rest
    assert text.startswith(answer)
    assert not any(string in answer for string in stop)
    assert stopped == any(string in text for string in stop)


@pytest.mark.parametrize("stop", [(), ("x" * 5000,)])
def test_nothing_is_held_back_without_need(stop):
    """Text that begins no stop string is sent at once, however long the stop string."""
    assert sent([b"hello"], *stop) == (["hello"], "", False)
