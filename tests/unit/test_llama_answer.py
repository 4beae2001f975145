"""Answers that leave the engine: whole characters, stop strings, thoughts and tool calls."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.llama.answer import Answer
from app.llama.syntax import Syntax, recognise

HERMES = recognise("{% if tools %}<tool_call>{% endif %}</think>")
MISTRAL = recognise("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]")
DEVSTRAL = recognise("{{ tools }}[TOOL_CALLS]name[ARGS]")
LLAMA = recognise('<|start_header_id|>{{ tools }} Respond with {"name": function name, "parameters": dictionary}')
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def said(answer: Answer, *pieces: str | bytes) -> tuple[str, str, list[tuple[str, object]]]:
    """(reasoning, text, calls) of an answer that arrives in these pieces."""
    parts = [answer.push(piece.encode() if isinstance(piece, str) else piece) for piece in pieces] + [answer.finish()]
    calls: dict[int, list[str]] = {}
    for part in parts:
        for delta in part.calls:
            begun = calls.setdefault(delta.index, ["", ""])
            begun[0] += delta.name or ""
            begun[1] += delta.arguments
    return (
        "".join(part.reasoning for part in parts),
        "".join(part.text for part in parts),
        [(name, json.loads(arguments)) for name, arguments in calls.values()],
    )


def test_a_character_is_sent_when_it_is_complete():
    """An accent is two bytes, an emoji four; tokens may cut them anywhere, and half of one at the end is dropped."""
    answer = Answer()
    pieces = [b"a\xc3", b"\xa9", b"\xf0\x9f", b"\x98", b"\x80!", b"\xff", b"\xf0\x9f"]
    assert [answer.push(piece).text for piece in pieces] == ["a", "é", "", "", "😀!", "�", ""]
    assert answer.finish().text == ""


def test_a_stop_string_across_tokens_ends_the_answer_in_front_of_it():
    """Nothing of it, and nothing behind it, is ever sent; its name is kept."""
    answer = Answer(["###"])
    assert said(answer, "one#", "#", "#two", "three") == ("", "one", [])
    assert answer.stopped == "###"


def test_what_turns_out_to_be_no_stop_string_is_sent_after_all():
    """Held back only as long as it could still become one."""
    answer = Answer(["###"])
    assert [answer.push(piece).text for piece in (b"a#", b"#", b"b", b"#")] == ["a", "", "##b", ""]
    assert answer.finish().text == "#"
    assert answer.stopped is None


def test_the_stop_string_that_is_complete_first_counts():
    """However the tokens cut the text."""
    answer = Answer(["ef", "cd", "bcdef"])
    assert said(answer, "abcdef")[1] == "ab"
    assert answer.stopped == "cd"


def test_thoughts_are_kept_apart():
    """Between the marks, without them and the line ends around them; a stop string in them stops nothing."""
    answer = Answer(["stop"], HERMES)
    assert said(answer, "<thi", "nk>\nLet me stop", " and think.\n</th", "ink>\n\nYes.") == (
        "Let me stop and think.", "Yes.", [],
    )  # fmt: skip


def test_a_prompt_may_end_within_the_thoughts():
    """Templates that write <think> themselves."""
    answer = Answer((), HERMES, thinking=True)
    assert answer.thinking
    assert said(answer, "Hm.</think>Yes.") == ("Hm.", "Yes.", [])
    assert not answer.thinking


@pytest.mark.parametrize(
    ("syntax", "written"),
    [
        (HERMES, CALL),
        (HERMES, CALL.removesuffix("</tool_call>")),
        (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln"}}]'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}", "id": "123456789"}]'),
        (DEVSTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Köln"}'),
        (DEVSTRAL, '[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{"city": "Köln"}'),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Köln"}}'),
        (LLAMA, '<|python_tag|>{"name": "weather", "parameters": {"city": "Köln"}}'),
    ],
)
def test_every_familys_calls_are_read(syntax: Syntax, written: str):
    """Byte by byte or at once, a call is a call and no text."""
    for pieces in ([written], [bytes([byte]) for byte in written.encode()]):
        answer = Answer((), syntax, ["weather"])
        assert said(answer, *pieces) == ("", "", [("weather", {"city": "Köln"})])
        assert answer.calls == 1


@pytest.mark.parametrize(
    ("syntax", "written"),
    [
        (HERMES, CALL + "\n" + CALL),
        (MISTRAL, "[TOOL_CALLS][" + ", ".join(['{"name": "weather", "arguments": {"city": "Köln"}}'] * 2) + "]"),
        (DEVSTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Köln"}' * 2),
    ],
)  # fmt: skip
def test_several_calls_keep_their_order_and_have_ids_of_their_own(syntax: Syntax, written: str):
    """Indices count from 0; ids have nine letters and digits, as Mistral's templates insist."""
    answer = Answer((), syntax, ["weather"])
    deltas = [delta for part in (answer.push(written.encode()), answer.finish()) for delta in part.calls]
    assert [delta.index for delta in deltas] == [0, 0, 1, 1]
    ids = {delta.id for delta in deltas if delta.id}
    assert len(ids) == 2
    assert all(len(each) == 9 and each.isalnum() for each in ids)


def test_text_around_a_call_is_kept():
    """What comes before, without the line end, and what comes behind."""
    answer = Answer((), HERMES, ["weather"])
    assert said(answer, f"I look.\n{CALL}\nDone.") == ("", "I look.\nDone.", [("weather", {"city": "Köln"})])


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Kö',
        '<tool_call>\n{"name": "weather"}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"t": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "launch", "arguments": {}}\n</tool_call>',
        "<tool_call>\nnonsense\n</tool_call>",
        "<tool_call>" + "[" * 100_000,
        "<tool_call>",
    ],
)  # fmt: skip
def test_what_is_no_call_of_an_offered_function_is_text(written: str):
    """Cut short, malformed, or made up: to the letter."""
    answer = Answer((), HERMES, ["weather"])
    assert said(answer, written) == ("", written, [])
    assert answer.calls == 0


def test_without_tools_a_mark_is_text():
    """Nobody offered a function."""
    assert said(Answer((), HERMES), CALL) == ("", CALL, [])


def test_an_answer_that_only_looks_like_json_is_text():
    """Llama writes a call as its whole answer; other JSON stays what it is."""
    assert said(Answer((), LLAMA, ["weather"]), '{"a"', ": 1}") == ("", '{"a": 1}', [])
    answer = Answer((), LLAMA, ["weather"])
    assert answer.push(b"Hello").text == "Hello"  # and text is not held back


def test_a_template_whose_calls_are_not_read_is_told_of_tools_like_one_without():
    """Qwen3-Coder writes calls as XML; Cohere's have parameters, but are not Llama's."""
    for template in ("{{ tools }}<tool_call><function=name>", '{{ tools }}{"tool_name": x, "parameters": y}'):
        assert (recognise(template).family, recognise(template).own) == ("hermes", False)
    assert recognise('{{ tools }}<tool_call>{"name": x, "arguments": y}').own


@pytest.mark.parametrize(
    ("template", "family"),
    [("", "hermes"), ("<tool_call>", "hermes"), ("[TOOL_CALLS]", "mistral"), ("[TOOL_CALLS][ARGS]", "devstral")],
)
def test_a_template_without_tools_is_hermes(template: str, family: str):
    """The tools are shown to it in a system prompt."""
    syntax = recognise(template)
    assert (syntax.family, syntax.own) == (family, False)


@settings(max_examples=300)
@example([CALL, "a", "\n", "é"], ["é"])
@given(
    st.lists(st.sampled_from([*"ab#é\n ", "<think>", "</think>", CALL, "<tool_", "##"]), max_size=8),
    st.lists(st.text(alphabet="ab#é", min_size=1, max_size=3), max_size=4),
)
def test_cutting_into_tokens_changes_nothing(parts: list[str], stop: list[str]):
    """Byte by byte an answer is the same as in one piece, and its text holds no stop string."""
    written = "".join(parts).encode()
    first, second = Answer(stop, HERMES, ["weather"]), Answer(stop, HERMES, ["weather"])
    whole = said(first, written)
    assert said(second, *(bytes([byte]) for byte in written)) == whole
    assert first.stopped == second.stopped
