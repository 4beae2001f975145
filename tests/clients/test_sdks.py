"""The official SDKs and the frameworks upon them: an answer, a streamed one, a tool call and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.acceptance.conftest import Server
from tests.clients.conftest import run
from tests.clients.install import FOLDER

pytestmark = pytest.mark.clients

MODEL = "mindfu-demo"
HELLO, KNOWS = "Hello there, this is MindFu answering.", "Now I know what it says."
QUESTION: Any = {"role": "user", "content": "What is the weather in Bern?"}
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
SCRIPTS = Path(__file__).parent / "scripts"


def test_openai_chat(server: Server):
    """Chat completions."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True)
    asked: Any = {"model": MODEL, "messages": [QUESTION]}
    assert client.chat.completions.create(**asked).choices[0].message.content == HELLO
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == HELLO
    message = client.chat.completions.create(**asked, tools=[FUNCTION]).choices[0].message
    assert message.tool_calls
    call: Any = message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Bern"}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    told = client.chat.completions.create(model=MODEL, messages=[QUESTION, message, result], tools=[FUNCTION])  # type: ignore[list-item]
    assert told.choices[0].message.content == KNOWS


def test_openai_responses(server: Server):
    """The Responses API, each request going on from the one before."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True)
    tool: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}
    assert client.responses.create(model=MODEL, input="hi").output_text == HELLO
    with client.responses.stream(model=MODEL, input="hi") as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == HELLO
    first = client.responses.create(model=MODEL, input="Weather?", tools=[tool])
    call: Any = first.output[-1]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    assert client.responses.create(model=MODEL, input=[result], previous_response_id=first.id).output_text == KNOWS


def test_anthropic(server: Server):
    """Messages."""
    client = anthropic.Anthropic(base_url=server.url, api_key="none", _strict_response_validation=True)
    asked: Any = {"model": MODEL, "max_tokens": 64, "messages": [QUESTION]}
    first: Any = client.messages.create(**asked).content[0]
    assert first.text == HELLO
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == HELLO
    tools: Any = [{"name": "get_weather", "input_schema": SCHEMA}]
    called = client.messages.create(**asked, tools=tools)
    call: Any = called.content[-1]
    assert (called.stop_reason, call.name, call.input) == ("tool_use", "get_weather", {"city": "Bern"})
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}
    asked["messages"] = [QUESTION, {"role": "assistant", "content": called.content}, result]
    told: Any = client.messages.create(**asked, tools=tools).content[0]
    assert told.text == KNOWS
    assert client.messages.count_tokens(model=MODEL, messages=[QUESTION]).input_tokens > 0


@pytest.mark.parametrize(
    ("environment", "script"),
    [("python", "langchain_openai"), ("python", "langchain_anthropic"), ("llama-index", "llama_index")],
)
def test_frameworks(server: Server, tmp_path: Path, environment: str, script: str):
    """Each in a process of its own."""
    told = run([FOLDER / environment / "bin/python", SCRIPTS / f"{script}.py", server.url, MODEL], _work(tmp_path))
    assert told.splitlines() == [HELLO, HELLO, 'get_weather {"city": "Bern"}', KNOWS]


def test_llm(server: Server, tmp_path: Path):
    """The command `llm`, whole and streamed, and with a tool."""
    work = _work(tmp_path)
    model = {"model_id": "mindfu", "model_name": MODEL, "api_base": f"{server.url}/v1", "supports_tools": True}
    (work / "extra-openai-models.yaml").write_text(json.dumps([model]))
    program, env = FOLDER / "python/bin/llm", {"LLM_USER_PATH": str(work), "OPENAI_API_KEY": "none"}
    assert run([program, "-m", "mindfu", "--no-stream", "hi"], work, env).strip() == HELLO
    assert run([program, "-m", "mindfu", "hi"], work, env).strip() == HELLO
    function = 'def get_weather(city: str) -> str:\n    "Of a city."\n    return "sunny"'
    assert KNOWS in run([program, "-m", "mindfu", "--functions", function, "Weather in Bern?"], work, env)


@pytest.mark.parametrize("script", ["openai_node", "anthropic_node"])
def test_node(server: Server, tmp_path: Path, script: str):
    """The npm packages."""
    work = _work(tmp_path)
    if not (FOLDER / "node/node_modules").exists():
        pytest.skip("the npm packages are not installed: python -m tests.clients.install")
    (work / "node_modules").symlink_to(FOLDER / "node/node_modules")
    (work / "script.mjs").write_text((SCRIPTS / f"{script}.mjs").read_text())
    told = run([_node(), work / "script.mjs", server.url, MODEL], work)
    assert told.splitlines() == [HELLO, HELLO, 'get_weather {"city":"Bern"}', KNOWS]


def _node() -> Path:
    found = shutil.which("node")
    if not found:
        pytest.skip("there is no node here")
    return Path(found)


def _work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"
