"""Answers that leave the engine: whole characters, stop strings, thoughts and tool calls."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.llama.answer import Answer, Piece
from app.llama.syntax import Syntax, recognise

HERMES = recognise("{% if tools %}<tool_call>{% endif %}</think>")
MISTRAL = recognise("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]")
DEVSTRAL = recognise("{{ tools }}[TOOL_CALLS]name[ARGS]")
MAGISTRAL = recognise("{{ tools }}[THINK][/THINK][TOOL_CALLS]name[ARGS]")
CODER = recognise("{{ tools }}<tool_call><function=name><parameter=key></parameter></function></tool_call>")
GLM = recognise("{{ tools }}<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>")
LLAMA = recognise('<|start_header_id|>{{ tools }} Respond with {"name": function name, "parameters": dictionary}')
TOOLS: dict[str, Any] = {"weather": {}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def said(answer: Answer, *pieces: str | bytes) -> tuple[str, str, list[tuple[str, Any]]]:
    """(reasoning, text, calls) of an answer that arrives in these pieces. A broken call has its arguments as text."""
    parts = [answer.push(piece.encode() if isinstance(piece, str) else piece) for piece in pieces]
    parts += iter(answer.finish, Piece())
    calls: dict[int, list[str]] = {}
    for delta in (delta for part in parts for delta in part.calls):
        assert (delta.id is None) == (delta.name is None) == (delta.index in calls)
        begun = calls.setdefault(delta.index, [delta.name or "", ""])
        begun[1] += delta.arguments
    reasoning, text = "".join(part.reasoning for part in parts), "".join(part.text for part in parts)
    return reasoning, text, [(name, parsed(arguments)) for name, arguments in calls.values()]


def parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


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


@pytest.mark.parametrize(("syntax", "mark"), [(HERMES, "<think>"), (MAGISTRAL, "[THINK]")])
def test_thoughts_are_kept_apart(syntax: Syntax, mark: str):
    """Between the marks, without them and the line ends around them; a stop string in them stops nothing."""
    answer, closing = Answer(["stop"], syntax), f"{mark[0]}/{mark[1:]}"
    pieces = (mark[:3], f"{mark[3:]}\nLet me stop", f" and think.\n{closing[:4]}", f"{closing[4:]}\n\nYes.")
    assert said(answer, *pieces) == ("Let me stop and think.", "Yes.", [])


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
        answer = Answer((), syntax, TOOLS)
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
    answer = Answer((), syntax, TOOLS)
    deltas = [delta for part in (answer.push(written.encode()), answer.finish()) for delta in part.calls]
    assert [delta.index for delta in deltas] == [0, 0, 1, 1]
    ids = {delta.id for delta in deltas if delta.id}
    assert len(ids) == 2
    assert all(len(each) == 9 and each.isalnum() for each in ids)


def test_text_around_a_call_is_kept():
    """What comes before, without the line end, and what comes behind."""
    answer = Answer((), HERMES, TOOLS)
    assert said(answer, f"I look.\n{CALL}\nDone.") == ("", "I look.\nDone.", [("weather", {"city": "Köln"})])


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>\n{"name": "weather", "arguments": ',
        '<tool_call>\n{"arguments": {"city": "Kö',
        '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": NaN}"}\n</tool_call>',
        '<tool_call>\n{"name": "weather"}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "launch", "arguments": {}}\n</tool_call>',
        "<tool_call>\nnonsense\n</tool_call>",
        "<tool_call>" + "[" * 100_000,
        "<tool_call>",
    ],
)  # fmt: skip
def test_what_is_no_call_of_an_offered_function_is_text(written: str):
    """Cut short, malformed, or made up: to the letter."""
    answer = Answer((), HERMES, TOOLS)
    assert said(answer, written) == ("", written, [])
    assert answer.calls == 0


def test_without_tools_a_mark_is_text():
    """Nobody offered a function."""
    assert said(Answer((), HERMES), CALL) == ("", CALL, [])


def test_an_answer_that_only_looks_like_json_is_text():
    """Llama writes a call as its whole answer; other JSON stays what it is."""
    assert said(Answer((), LLAMA, TOOLS), '{"a"', ": 1}") == ("", '{"a": 1}', [])
    answer = Answer((), LLAMA, TOOLS)
    assert answer.push(b"Hello").text == "Hello"  # and text is not held back


@pytest.mark.parametrize(
    ("cut", "arguments", "text"),
    [
        ('{"city": "Kö', '{"city": "Kö', ""),  # by max_tokens
        ('{"city": "Köln"', '{"city": "Köln"', ""),
        ('{"t": NaN}}\n</tool_call>', '{"t": ', "NaN}}\n</tool_call>"),  # malformed
        ('{"a": 1}', {"a": 1}, ""),  # the call is whole, its frame is not
        ('{"a": 1}}\n</tool', {"a": 1}, ""),
        ('{"a": 1}}oh</tool_call>', {"a": 1}, "oh</tool_call>"),
    ],
)
def test_a_call_that_breaks_off_stays_as_it_is(cut: str, arguments: Any, text: str):
    """What was sent was sent: incomplete JSON, which nobody runs. What follows is text."""
    for pieces in ([cut], list(cut)):
        answer = Answer((), HERMES, TOOLS)
        assert said(answer, '<tool_call>{"name": "weather", "arguments": ', *pieces) == (
            "", text, [("weather", arguments)],
        )  # fmt: skip
        assert answer.broken == isinstance(arguments, str)
        assert answer.calls == (not answer.broken)


def test_arguments_are_sent_as_they_come():
    """The first piece of a call has its id and name, the others have what was written since."""
    answer = Answer((), HERMES, TOOLS)
    written = ['<tool_call>{"name": "wea', 'ther", "arguments"', ': {"ci', 'ty"', ': "Bern"}', "}</tool_call>"]
    told = [[(delta.name, delta.arguments) for delta in answer.push(piece.encode()).calls] for piece in written]
    assert told == [[], [], [("weather", ""), (None, '{"ci')], [(None, 'ty"')], [(None, ': "Bern"}')], []]


def test_arguments_in_front_of_the_name_wait_for_it():
    """Nobody knows before whether the function was offered."""
    answer = Answer((), HERMES, TOOLS)
    call = '<tool_call>{"arguments": {"city": "Köln"}, "name": "weather", "id": 7}</tool_call>'
    assert said(answer, *call) == ("", "", [("weather", {"city": "Köln"})])


def test_a_mark_in_an_argument_ends_nothing():
    """A call may be about calls."""
    answer = Answer(["###"], HERMES, TOOLS)
    call = '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call> ###"}}</tool_call>'
    assert said(answer, call) == ("", "", [("weather", {"city": "</tool_call> ###"})])


def test_behind_the_one_call_that_is_allowed_comes_nothing():
    """However the tokens cut it."""
    for pieces in ([CALL * 2 + "more"], list(CALL * 2 + "more")):
        answer = Answer((), HERMES, TOOLS, parallel=False)
        assert said(answer, *pieces) == ("", "", [("weather", {"city": "Köln"})])
        assert answer.complete


FORECAST = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": ["integer", "null"]},
        "units": {"$ref": "#/$defs/units"},
        "place": {"anyOf": [{"type": "object"}, {"type": "string"}]},
        "now": {"type": "boolean"},
        "when": {"properties": {"a": {"type": "string"}}},
    },
    "$defs": {"units": {"enum": ["c", "f"]}},
}
VALUES = [
    ("city", 'K"ö"\n\n5', 'K"ö"\n\n5'), ("city", "7", "7"), ("city", "", ""), ("city", "a < b </par", "a < b </par"),
    ("days", "7", 7), ("days", "null", None), ("days", "many", "many"), ("days", "7.5", "7.5"), ("units", "c", "c"),
    ("when", '{"a": "</parameter></arg_value>"}', {"a": "</parameter></arg_value>"}), ("when", "{a", "{a"),
    ("place", '{"a": [1]}', {"a": [1]}), ("place", "[1]", "[1]"), ("place", "7", "7"), ("now", "True", True),
    ("now", "NaN", "NaN"), ("other", "1e3", 1000.0), ("other", '"quoted"', '"quoted"'), ("other", "Bern", "Bern"),
]  # fmt: skip


def coder(name: str, *values: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def glm(name: str, *values: tuple[str, str]) -> str:
    inner = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values)
    return f"<tool_call>{name}\n{inner}</tool_call>"


@pytest.mark.parametrize(("key", "value", "meant"), VALUES)
@pytest.mark.parametrize(("syntax", "write"), [(CODER, coder), (GLM, glm)], ids=["coder", "glm"])
def test_values_in_xml_mean_what_the_schema_says(syntax: Syntax, write: Any, key: str, value: str, meant: Any):
    """A string where it allows one, else the JSON that stands there; what does not fit is told as it is."""
    for pieces in ([write("weather", (key, value))], list(write("weather", (key, value)))):
        answer = Answer((), syntax, {"weather": FORECAST})
        assert said(answer, *pieces) == ("", "", [("weather", {key: meant})])


def test_xml_strings_are_sent_as_they_come():
    """Escaped, and what may belong to the mark behind them is held."""
    answer = Answer((), CODER, {"weather": FORECAST})
    written = [
        "<tool_call>\n<function=weather>",
        "\n<parameter=city>\nSaid ",
        '"Bern"',
        "\n</par",
        "is",
        "\n</parameter>",
    ]
    told = ["".join(delta.arguments for delta in answer.push(piece.encode()).calls) for piece in written]
    assert told == ["", '{"city": "Said ', '\\"Bern\\"', "", "\\n</paris", '"']
    assert [delta.arguments for delta in answer.push(b"</function>").calls] == ["}"]


@pytest.mark.parametrize(
    "written",
    [
        "<tool_call><function=launch>\n</function></tool_call>",
        "<tool_call><function=weather",
        "<tool_call><invoke name=weather>",
        "<tool_call>\n{}",
    ],
)
@pytest.mark.parametrize("syntax", [CODER, GLM], ids=["coder", "glm"])
def test_what_is_no_xml_call_is_text(syntax: Syntax, written: str):
    """To the letter."""
    assert said(Answer((), syntax, {"weather": FORECAST}), *written) == ("", written, [])


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{{ tools }}<tool_call>\\n<function=x>\\n<parameter=y>", "coder"),
        ("{{ tools }}<tool_call>{name}<arg_key>{key}</arg_key><arg_value>", "glm"),
    ],
)
def test_xml_is_recognised_where_the_template_shows_tools(template: str, family: str):
    """Without tools of its own, a template is told of them in Hermes' words."""
    assert (recognise(template).family, recognise(template).own) == (family, True)
    assert recognise(template.replace("tools", "")).family == "hermes"


def test_a_template_whose_calls_are_not_read_is_told_of_tools_like_one_without():
    """Functionary's are JSON in a mark; Cohere's have parameters, but are not Llama's."""
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


SYNTAXES = {"hermes": HERMES, "mistral": MISTRAL, "devstral": DEVSTRAL, "llama": LLAMA, "coder": CODER, "glm": GLM}
OBJECT = '{"name": "weather", "arguments": {"city": "</tool_call>é", "n": [1, {"a": "\\""}]}}'
PARTS = [
    *'ab#é\n {}[]"<>', "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]",
    "<|python_tag|>", "##", CALL,
    OBJECT, f"<tool_call>{OBJECT}</tool_call>", f"[TOOL_CALLS][{OBJECT}, {OBJECT}]", "[TOOL_CALLS]weather",
    '[TOOL_CALLS]weather[ARGS]{"city": 1}', coder("weather", ("city", "é"), ("days", "1")), "</parameter>",
    glm("weather", ("city", "é"), ("days", "1")), "<function=weather>", "<arg_value>", '{"name": "weather", ', "NaN",
]  # fmt: skip


@settings(max_examples=400)
@example(family="hermes", parts=[CALL, "a", "\n", "é"], stop=["é"], cuts=[], end=500, parallel=True)
@example(family="hermes", parts=["<"], stop=["<"], cuts=[], end=1, parallel=True)
@example(family="llama", parts=["<|"], stop=["<"], cuts=[], end=2, parallel=True)
@given(
    family=st.sampled_from(list(SYNTAXES)),
    parts=st.lists(st.sampled_from(PARTS), max_size=8),
    stop=st.lists(st.text(alphabet="ab#é<", min_size=1, max_size=3), max_size=2),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    end=st.integers(0, 500),
    parallel=st.booleans(),
)
def test_cutting_into_tokens_changes_nothing(
    family: str, parts: list[str], stop: list[str], cuts: list[int], end: int, *, parallel: bool
):
    """In one piece, in any pieces, byte by byte: the same text and the same calls, wherever the answer ends.

    A call is whole, or said to be broken; no text holds a stop string.
    """
    written = "".join(parts).encode()[:end]
    places = sorted({0, *cuts, len(written)})
    some = [written[first:last] for first, last in pairwise(places)]
    results = []
    for pieces in ([written], some, [bytes([byte]) for byte in written]):
        answer = Answer(stop, SYNTAXES[family], {"weather": FORECAST}, parallel=parallel)
        told = said(answer, *pieces)
        results.append((told, answer.stopped, answer.calls, answer.broken))
        whole = [arguments for _, arguments in told[2] if isinstance(arguments, dict)]
        assert answer.calls == len(whole)
        assert answer.broken == (len(whole) < len(told[2]))
        assert parallel or answer.calls <= 1
        assert not any(mark in told[1] for mark in stop)
    assert results[0] == results[1] == results[2]
