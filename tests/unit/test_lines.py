"""Lines of data: what is read is what was written, and what is wrong is named."""

import json
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from train import lines

ASKED = {"role": "user", "content": "Is it raining?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bern"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}
SAID = {"role": "assistant", "content": "No."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def test_a_line_comes_back_as_it_was() -> None:
    """Tools, calls, weights and where it came from included."""
    messages = [ASKED, {**CALLED, "weight": 0}, RESULT, {**SAID, "weight": 1}]
    told = {"messages": messages, "tools": [TOOL], "metadata": {"id": "c1", "turns": ["t1"]}}
    line = lines.parse(json.dumps(told))
    assert json.loads(lines.dump(line)) == told
    assert line.weights == (0, 0, 0, 1)


def test_an_answer_without_a_weight_is_learnt() -> None:
    """As OpenAI has it."""
    assert lines.parse(json.dumps({"messages": [ASKED, SAID]})).weights == (0, 1)


def test_a_preference_comes_back_as_it_was() -> None:
    """Also as TRL writes it, each answer in a list."""
    told = {"prompt": [ASKED], "chosen": SAID, "rejected": {"role": "assistant", "content": "Yes."}}
    pair = lines.parse_preference(json.dumps(told))
    assert json.loads(lines.dump_preference(pair)) == told
    listed = {"prompt": [ASKED], "chosen": [told["chosen"]], "rejected": [told["rejected"]]}
    assert lines.parse_preference(json.dumps(listed)) == pair


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "The line is no JSON"),
        ("[]", "The line is no JSON object."),
        ('{"messages": []}', "The line has no 'messages'."),
        ('{"messages": "hello"}', "'messages' is no list of messages."),
        (json.dumps({"messages": [{"role": "robot", "content": "x"}]}), r"'messages.0.role': Input should be"),
        (json.dumps({"messages": [ASKED, {**SAID, "weight": 2}]}), r"'messages\[1\].weight' is 2, it must be 0 or 1."),
        (json.dumps({"messages": [RESULT]}), "answers no call that an assistant made before it"),
        (json.dumps({"messages": [ASKED, SAID], "tools": [{"type": "f"}]}), "'tools': "),
        (json.dumps({"messages": [ASKED, SAID], "metadata": 1}), "'metadata' is no object."),
    ],
)
def test_what_is_wrong_with_a_line_is_named(text: str, message: str) -> None:
    """With the field."""
    with pytest.raises(InvalidRequest, match=message):
        lines.parse(text)


def test_an_answer_of_a_preference_is_an_assistants() -> None:
    """Anybody else's is refused."""
    told = {"prompt": [ASKED], "chosen": ASKED, "rejected": SAID}
    with pytest.raises(InvalidRequest, match="is a message of role 'user', not 'assistant'"):
        lines.parse_preference(json.dumps(told))


def test_a_wrong_line_of_a_file_is_found_by_its_number(tmp_path: Path) -> None:
    """So that people can look at it. Empty lines are none, and U+2028 is no line's end."""
    file = tmp_path / "data.jsonl"
    good = json.dumps({"messages": [ASKED, {"role": "assistant", "content": "a\u2028b"}]}, ensure_ascii=False)
    file.write_text(f"{good}\n\n{good}\n", encoding="utf-8")
    assert len(list(lines.read(file))) == 2
    file.write_text(f"{good}\n{{\n", encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"data\.jsonl, line 2: The line is no JSON"):
        list(lines.read(file))


def test_the_same_words_have_the_same_fingerprint() -> None:
    """Whatever ids a client gave to its calls."""
    one = lines.parse(json.dumps({"messages": [ASKED, CALLED, RESULT, SAID]}))
    other = json.dumps({"messages": [ASKED, CALLED, RESULT, SAID]}).replace("call_1", "call_2")
    assert one.id == lines.parse(other).id
    assert one.id != lines.parse(json.dumps({"messages": [ASKED, SAID]})).id
