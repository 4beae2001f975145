"""Logs of other programs are read as what they are, or refused with the reason."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from app.errors import InvalidRequest
from app.log_files import Found, find
from app.logs import Session, Unreadable, answers, record, vibe

META: dict[str, Any] = {
    "session_id": "aca2d266",
    "start_time": "2026-11-21T07:58:41.014000+00:00",
    "end_time": "2026-11-21T08:00:41+00:00",
    "config": {"active_model": "local", "model_name": "devstral"},
    "tools_available": [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}],
}
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "You are Vibe."},
    {"role": "user", "content": "What is here?", "message_id": "1", "injected": False},
    {"role": "assistant", "reasoning_content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "content": "secret.txt", "tool_call_id": "c1", "name": "bash"},
    {"role": "assistant", "content": "One file."},
]


def lines(*records: Any) -> str:
    return "\n".join(json.dumps(one) for one in records)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def only(found: Iterator[Found]) -> Session:
    (one,) = found
    assert isinstance(one.what, Session), one.what
    return one.what


def test_a_folder_of_vibe_is_one_session(tmp_path):
    """With its id, times, model and tools; a call is told as such, and so is what was thought before it."""
    session = only(find(str(write(tmp_path, {"s/meta.json": json.dumps(META), "s/messages.jsonl": lines(*SAID)}))))
    assert (session.format, session.key, session.model, session.client) == (
        "vibe",
        "aca2d266",
        "devstral",
        "mistral-vibe",
    )
    assert session.began == datetime(2026, 11, 21, 7, 58, 41, 14000, UTC)
    assert [message.role for message in session.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert session.messages[2].tool_calls[0].arguments == '{"command": "ls"}'
    assert session.messages[2].reasoning == "Let me see."
    assert [tool.name for tool in session.tools] == ["bash"]
    assert list(answers(session)) == [2, 4]


def test_a_folder_of_vibe_3_is_read_from_its_latest_generation(tmp_path):
    """Where messages lie in chunks, and a manifest names those that count."""
    raw = {"raw": '{"command": "ls"}', "type": "json", "value": {"command": "ls"}}
    chunk = [
        {"message": {"content": [{"text": "What is here?", "type": "text"}], "role": "user"}, "source": "history"},
        {"message": {"content": [
            {"text": "I look.", "type": "text"}, {"arguments": raw, "id": "c1", "name": "bash", "type": "tool_call"},
        ], "role": "assistant"}, "source": "history"},
        {"message": {"content": [{"text": "a", "type": "text"}], "name": "bash", "outcome": "success", "role": "tool",
                     "tool_call_id": "c1"}, "source": "history"},
        {"message": {"content": [{"text": "One file.", "type": "text"}], "role": "assistant"}, "source": "history"},
    ]  # fmt: skip
    files = {
        "meta.json": json.dumps(META),
        "CURRENT": json.dumps({"generation": "0021"}),
        "generations/0021/manifest.json": json.dumps({"checkpoint": {"chunks": ["4c96", "d050"]}}),
        "chunks/4c96.json": json.dumps(chunk[:2]),
        "chunks/d050.json": json.dumps(chunk[2:]),
        "journal/0001.jsonl": lines({"type": "command_reserved"}),
    }
    session = only(find(str(write(tmp_path, files))))
    assert [message.content for message in session.messages] == ["What is here?", "I look.", "a", "One file."]
    assert session.messages[1].tool_calls[0].arguments == '{"command": "ls"}'


def test_lines_of_openai_keep_tools_and_weights():
    """An answer of weight 0 is marked, so that nobody learns from it."""
    said = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": "b", "weight": 0}]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "function"}]
    session = record({"messages": said, "tools": tools, "created_at": 1795247921, "model": "gpt"})
    assert isinstance(session, Session)
    assert (session.messages[0].content, session.bad, session.model) == ("a", {1}, "gpt")
    assert session.left_out == {"image_url": 1, "tool definitions": 1}
    assert session.began == datetime(2026, 11, 21, 7, 58, 41, tzinfo=UTC)


def test_sharegpt_is_translated():
    """Its roles, its system prompt, its calls as JSON in a value."""
    session = record(
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
                {"from": "observation", "value": "sunny"},
                {"from": "gpt", "value": "It is sunny."},
            ],
            "tools": '[{"name": "weather", "description": "Tells it"}]',
        }
    )
    assert isinstance(session, Session)
    assert [message.role for message in session.messages] == ["system", "user", "assistant", "tool", "assistant"]
    (call,) = session.messages[2].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Bern"})
    assert session.messages[3].tool_call_id == call.id
    assert [tool.name for tool in session.tools] == ["weather"]


def test_the_same_said_elsewhere_is_known_by_the_same_key():
    """So that a file which moved is not imported twice."""
    said = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert record(said).key == record({**said, "id": 7}).key
    assert record(said).key != record({"messages": [*said["messages"], {"role": "user", "content": "c"}]}).key


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "no JSON object"),
        ({"text": "hello"}, 'neither "messages"'),
        ({"messages": "hello"}, "no list"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no question"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "'narrator'"),
        ({"messages": [{"role": "user", "content": 7}]}, "neither text nor parts"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "nobody asked for"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "without a name"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"turns": [{"id": "x"}]}, "looks like an export of MindFu"),
    ],
)
def test_what_is_no_conversation_is_refused_with_the_reason(given: Any, why: str):
    """In words that say what to look for."""
    with pytest.raises(Unreadable, match=why):
        record(given)


def test_a_folder_of_anything_is_read_as_far_as_it_can_be(tmp_path):
    """A broken line is skipped, and said so, and the lines around it are read."""
    good = lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    files = {"a.jsonl": f"{good}\n{{broken\n\n{good}", "b.md": "# no log", "c/d.json": f"[{good}, {good}]",
             "v/meta.json": json.dumps(META), "w/meta.json": "{", "w/messages.jsonl": ""}  # fmt: skip
    found = [(Path(one.where).name, type(one.what).__name__) for one in find(str(write(tmp_path, files)))]
    assert found == [
        ("a.jsonl:1", "Session"), ("a.jsonl:2", "Unreadable"), ("a.jsonl:4", "Session"), ("b.md", "Unreadable"),
        ("d.json:1", "Session"), ("d.json:2", "Session"), ("v", "Unreadable"), ("w", "Unreadable"),
    ]  # fmt: skip


def test_other_places_are_reached_by_their_url(tmp_path):
    """Through fsspec; one that is not there, or that needs what is not installed, is refused in plain words."""
    with fsspec.open("memory://logs/a.jsonl", "w") as file:
        file.write(lines({"messages": SAID}))
    assert only(find("memory://logs")).messages[-1].content == "One file."
    for url, why in (("memory://nothing", "nothing at"), ("nonsense://a", "cannot be reached")):
        with pytest.raises(InvalidRequest, match=why):
            list(find(url))


def test_vibe_without_an_answer_is_refused():
    """A session that was opened and left."""
    with pytest.raises(Unreadable, match="no answer"):
        vibe(json.dumps(META), [json.dumps(SAID[1])])
