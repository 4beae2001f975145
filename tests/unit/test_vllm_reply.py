"""Tokens of vLLM as deltas of the contract."""

from types import SimpleNamespace

from app.llama.answer import Answer
from app.llama.syntax import Syntax
from app.messages import Delta, End
from app.vllm.reply import Reply

THINKS = Syntax("hermes", own=True, opening="<tool_call>", closing="</tool_call>", thoughts=("<think>", "</think>"))


class Letters:
    """Tokens are code points, and 0 ends an answer."""

    endings = frozenset({0})

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token else b""

    def name(self, token: int) -> str:
        return "<end>"


def reply(text: Answer | None = None, top: int | None = None) -> Reply:
    return Reply(2, text or Answer(), Letters(), top)


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_what_ends_an_answer_is_not_counted():
    """Nor is anything behind it."""
    one = reply()
    assert text(one.take([*b"hi"], None, None)) == "hi"
    assert one.end is None
    assert one.take([0, *b"more"], None, "stop") == []
    assert (one.end, one.generated) == (End("stop"), 2)


def test_the_limit_is_told_from_an_end():
    """The engine says which it was."""
    one = reply()
    assert [delta.choice for delta in one.take([*b"hi"], None, "length")] == [2, 2]
    assert one.end == End("length")


def test_a_stop_string_ends_the_answer_before_vllm_knows():
    """Its tokens were made, and count; it never shows."""
    one = reply(Answer(("lo",)))
    assert text(one.take([*b"hello there"], None, None)) == "hel"
    assert (one.end, one.generated) == (End("stop", "lo"), 5)


def test_a_character_waits_for_its_bytes():
    """é is two of them, and dropped where the answer ends between them."""
    one = reply()
    assert text(one.take([0xC3], None, None)) == ""
    assert text(one.take([0xA9], None, None)) == "é"
    assert text(one.take([0xC3], None, "length")) == ""


def test_calls_and_thoughts_are_told_apart_and_counted():
    """A complete call is what ended the answer; one that was cut short was cut by the limit."""
    said = b'<think>so</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    one = reply(Answer((), THINKS, {"f": {}}))
    deltas = one.take([*said, 0], None, "stop")
    assert "".join(delta.reasoning for delta in deltas) == "so"
    assert [call.name for delta in deltas for call in delta.tool_calls if call.id] == ["f"]
    assert one.end == End("tool_calls")
    assert 0 < one.thought < len("<think>so</think>")
    cut = reply(Answer((), THINKS, {"f": {}}))
    cut.take([*said[:-14], 0], None, "stop")
    assert cut.end == End("length")


def test_likelihoods_are_told_best_first():
    """The chosen token comes beside the likeliest ones where it is none of them."""
    likely = {120: SimpleNamespace(logprob=-3.0), 98: SimpleNamespace(logprob=-1.0), 0: SimpleNamespace(logprob=-0.5)}
    (delta,) = reply(top=2).take([120], [likely], None)
    (told,) = delta.logprobs
    assert (told.chosen.data, told.chosen.logprob) == (b"x", -3.0)
    assert [(one.text, one.logprob) for one in told.top] == [("<end>", -0.5), ("b", -1.0)]
    (delta,) = reply(top=0).take([120], [likely], None)
    assert delta.logprobs[0].top == ()
