"""The server's tools through the whole gateway: who gets them, what runs, what clients see, and what is kept."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import yaml

from app.messages import Delta, Done, End, Generate, Message, Timings, ToolCallDelta, Usage
from app.settings import LLMSettings, Settings, ToolSettings
from deployments.llama_cpp import LlamaCpp
from tests.gateway import Echo, Local, Whole, whole

pytestmark = pytest.mark.integration
ASKED = [{"role": "user", "content": "What is in the notes?"}]
RAN = ["read_file({path})"]


def blocks(language: str) -> list[str]:
    """What docs/tools.md shows in a language."""
    text = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_documented_settings_are_settings():
    """All that docs/tools.md shows, MCP servers too."""
    shown = [yaml.safe_load(block) for block in blocks("yaml")]
    found = [ToolSettings.model_validate((one.get("args") or one)["tools"]) for one in shown]
    assert [(one.enabled, one.functions, sorted(one.mcp)) for one in found] == [
        (True, (), []),
        (True, ("weather:get_weather",), []),
        (True, (), ["files", "github"]),
    ]


class Model(Echo):
    """Says one thing after the other, and notes what it was asked."""

    def __init__(self) -> None:
        self.rounds: list[Sequence[Delta]] = []
        self.asked: list[Generate] = []

    def will(self, *rounds: Sequence[Delta]) -> None:
        self.rounds, self.asked = list(rounds), []

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done]:
        self.asked.append(request)
        said = self.rounds.pop(0) if self.rounds and request.tool_choice != "none" else [Delta("It is so.", 1)]
        for delta in said:
            yield delta
        reason = "tool_calls" if any(delta.tool_calls for delta in said) else "stop"
        yield Done(
            (End(reason),), Usage(prompt_tokens=10, completion_tokens=2), Timings(queued_s=0, prefill_s=0, decode_s=0)
        )

    def told(self) -> list[Any]:
        """What the model was told of its calls."""
        return [json.loads(message.content) for message in self.asked[-1].messages if message.role == "tool"]


def calls(*made: tuple[str, dict[str, Any]], text: str = "") -> list[Delta]:
    pieces = [
        ToolCallDelta(index, json.dumps(given), id=f"call_{index}", name=name)
        for index, (name, given) in enumerate(made)
    ]
    return [Delta(text, 1), *(Delta("", 1, tool_calls=(piece,)) for piece in pieces)]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, model: Model) -> AsyncIterator[Whole]:
    """A gateway whose model calls what a test says, with the further tool that docs/tools.md shows."""
    code, settings = blocks("python")[1], yaml.safe_load(blocks("yaml")[1])["tools"]
    own = tmp_path_factory.mktemp("own")
    (own / code.split("\n")[0].removeprefix("# ")).write_text(code)
    sys.path.insert(0, str(own))
    home = tmp_path_factory.mktemp("home").resolve()
    tools = ToolSettings.model_validate(settings | {"max_iterations": 2})
    try:
        async with whole(home, Settings(tools=tools), llm=model) as gateway:
            yield gateway
    finally:
        sys.path.remove(str(own))


@pytest.fixture
async def key(gateway: Whole) -> str:
    return await gateway.key("default", "chat", "documents", "tools")


@pytest.fixture
def notes(gateway: Whole) -> Path:
    """A file in the workspace of the tenant `default`."""
    path = gateway.home / "workspace" / "default" / "notes.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("Buy milk.\n")
    return path


async def chat(gateway: Whole, key: str, **more: Any) -> Any:
    async with gateway.http(key) as http:
        body = {"model": "mindfu-demo", "messages": ASKED, "rag": False} | more
        return await http.post("/v1/chat/completions", json=body)


async def test_tools_are_off_for_who_does_not_ask(gateway, model, key):
    """The model is told of none."""
    model.will()
    assert (await chat(gateway, key)).status_code == 200
    for nothing in (False, [], None):
        assert (await chat(gateway, key, server_tools=nothing)).status_code == 200
    assert [asked.tools for asked in model.asked] == [(), (), (), ()][-len(model.asked) :]


async def test_a_key_needs_the_scope(gateway):
    """Which keys do not have unless somebody gave it to them."""
    plain = await gateway.key("default")
    for path, body in (
        ("chat/completions", {"messages": ASKED}),
        ("messages", {"messages": ASKED, "max_tokens": 9}),
        ("responses", {"input": "hi"}),
    ):
        async with gateway.http(plain) as http:
            refused = await http.post(f"/v1/{path}", json={"model": "mindfu-demo", "server_tools": True} | body)
        assert refused.status_code == 403
        assert "'tools'" in refused.text
    async with gateway.http(plain) as http:
        assert (await http.get("/v1/tools")).status_code == 403


async def test_a_server_without_tools_says_so(tmp_path):
    """A 400 that names the setting; the list is empty."""
    async with whole(tmp_path) as off, off.http() as http:
        body = {"model": "mindfu-demo", "messages": ASKED, "server_tools": ["read_file"]}
        refused = await http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "server_tools")
        assert "tools.enabled" in refused.json()["error"]["message"]
        assert (await http.get("/v1/tools")).json() == {
            "object": "list",
            "enabled": False,
            "data": [],
            "mcp_servers": {},
        }


async def test_the_tools_are_listed_as_openai_defines_them(gateway, key):
    """The fifteen that we bring, and the one of the settings."""
    async with gateway.http(key) as http:
        told = (await http.get("/v1/tools")).json()
    tools = {tool["function"]["name"]: tool for tool in told["data"]}
    assert len(tools) == 16
    assert tools["get_weather"] == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tell the weather at a place.",
            "parameters": {
                "type": "object",
                "properties": {"location": {"description": "A city.", "type": "string"}},
                "required": ["location"],
                "additionalProperties": False,
            },
        },
        "reads": True,
    }
    assert not tools["delete_file"]["reads"]


async def test_the_model_reads_a_file_and_answers(gateway, model, key, notes):
    """The client sees one answer and what was used; the turn keeps every call with all that the model saw."""
    model.will(calls(("read_file", {"path": str(notes)}), ("get_weather", {"location": "Bern"}), text="Let me see."))
    told = (await chat(gateway, key, server_tools=["read_file", "get_*"])).json()
    message = told["choices"][0]["message"]
    assert (message["content"], message.get("tool_calls")) == ("Let me see.\n\nIt is so.", None)
    assert told["tools_used"] == [
        f"read_file({str(notes)[:80]}{'…' if len(str(notes)) > 80 else ''})",
        "get_weather(Bern)",
    ]
    assert told["usage"]["total_tokens"] == 24
    assert [tool.name for tool in model.asked[0].tools] == [
        "read_file",
        "get_file_info",
        "get_current_directory",
        "get_weather",
    ]
    assert model.told() == [
        {"content": "Buy milk.\n", "lines": 1},
        {"status": "success", "temp": 21, "condition": "sunny"},
    ]
    async with gateway.http(key) as http:
        (turn,) = await _turns(http)
    assert turn["answer"]["content"] == "Let me see.\n\nIt is so."
    assert [(run["name"], run["status"], run["round"]) for run in turn["extras"]["tool_runs"]] == [
        ("read_file", "success", 1),
        ("get_weather", "success", 1),
    ]
    steps = [Message.model_validate(step) for step in turn["extras"]["steps"]]
    assert tuple(steps) == model.asked[1].messages[1:]


async def test_what_fails_is_told_to_the_model_and_it_goes_on(gateway, model, key, notes):
    """A file outside, arguments that are none, a tool that was not offered; then it must answer."""
    bad = [ToolCallDelta(0, '{"pa', id="c0", name="read_file")]
    model.will(
        calls(("read_file", {"path": "/etc/passwd"}), ("delete_file", {"path": str(notes)})),
        [Delta("", 1, tool_calls=tuple(bad))],
        calls(("read_file", {"path": str(notes)})),
    )
    told = (await chat(gateway, key, server_tools=["read_file"])).json()
    assert told["choices"][0]["message"]["content"] == "It is so."
    assert [asked.tool_choice for asked in model.asked] == ["auto", "auto", "none"]
    assert [result["status"] for result in model.told()] == ["error"] * 3
    assert [result["error"][:30] for result in model.told()] == [
        "'/etc/passwd' is protected.",
        "There is no tool 'delete_file'",
        "The arguments are not JSON: EO",
    ]
    assert notes.exists()


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"server_tools": ["rm"]}, "server_tools", "'rm', which is no tool of this server. There are: lookup_hostname"),
        (
            {"server_tools": True, "tools": [{"type": "function", "function": {"name": "read_file"}}]},
            "server_tools",
            "rename yours",
        ),
        ({"server_tools": True, "n": 2}, "n", "one answer"),
        ({"server_tools": 3}, "server_tools", "valid"),
        ({"server_tools": [""]}, "server_tools[0]", "at least 1"),
    ],
)
async def test_what_cannot_be_is_refused(gateway, key, body, param, reason):
    """With the field at fault, and what to do."""
    refused = await chat(gateway, key, **body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(param)
    assert reason in refused.json()["error"]["message"]


async def test_a_call_of_the_clients_own_tool_is_the_clients(gateway, model, key, notes):
    """Beside one of ours: the client's result comes first."""
    own = {"type": "function", "function": {"name": "ask_user", "parameters": {"type": "object", "properties": {}}}}
    model.will(calls(("read_file", {"path": str(notes)}), ("ask_user", {})))
    told = (await chat(gateway, key, server_tools=["read_file"], tools=[own])).json()
    (choice,) = told["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["ask_user"]
    assert (choice["finish_reason"], "tools_used" in told) == ("tool_calls", False)


async def test_a_tool_may_be_required_by_name(gateway, model, key):
    """As one of the client's own: of the first round."""
    model.will(calls(("get_weather", {"location": "Bern"})))
    choice = {"type": "function", "function": {"name": "get_weather"}}
    assert (await chat(gateway, key, server_tools=True, tool_choice=choice)).status_code == 200
    assert [str(asked.tool_choice) for asked in model.asked] == ["name='get_weather'", "auto"]


async def test_tenants_have_workspaces_of_their_own(gateway, model, notes):
    """What one writes the other cannot read, by whatever path."""
    other = await gateway.key("other", "chat", "tools")
    model.will(calls(("read_file", {"path": str(notes)}), ("get_current_directory", {})))
    await chat(gateway, other, server_tools=True)
    refused, where = model.told()
    assert refused["status"] == "error"
    assert where["allowed"] == [str(gateway.home / "workspace" / "other")]


async def test_documents_are_searched_for_the_callers_tenant_alone(gateway, model, key):
    """In the collections that the request names, or those of the settings."""
    async with gateway.http(key) as http:
        added = {"content": "The zebra sleeps in the cellar.", "title": "Zebra"}
        assert (await http.post("/v1/documents", json=added)).status_code in {200, 201}
    search = calls(("search_documents", {"query": "Where does the zebra sleep?"}))
    other = await gateway.key("other", "chat", "tools")
    found = []
    for who, more in ((key, {}), (other, {}), (key, {"rag": {"collections": ["elsewhere"]}})):
        model.will(search)
        await chat(gateway, who, server_tools=["search_documents"], **more)
        found.append([passage["text"] for passage in model.told()[0]["passages"]])
    assert found == [["The zebra sleeps in the cellar."], [], []]


async def test_responses_and_messages_run_tools_too(gateway, model, key, notes):
    """The same answer in each dialect; a stored response tells again what was used, and `max_tool_calls` holds."""
    read = calls(("read_file", {"path": str(notes)}), ("get_weather", {"location": "Bern"}))
    async with gateway.http(key) as http:
        model.will(read)
        body = {"model": "mindfu-demo", "input": "hi", "rag": False, "server_tools": True, "max_tool_calls": 1}
        told = (await http.post("/v1/responses", json=body)).json()
        assert [item["type"] for item in told["output"]] == ["message"]
        assert [result.get("status") for result in model.told()] == [None, "error"]
        assert len(told["tools_used"]) == 2
        again = (await http.get(f"/v1/responses/{told['id']}")).json()
        assert (again["tools_used"], again["output"]) == (told["tools_used"], told["output"])
        model.will(read)
        body = {"model": "mindfu-demo", "messages": ASKED, "rag": False, "server_tools": True, "max_tokens": 99}
        message = (await http.post("/v1/messages", json=body)).json()
        assert ([block["type"] for block in message["content"]], message["stop_reason"]) == (["text"], "end_turn")
        assert message["tools_used"][1] == "get_weather(Bern)"
        counted = {name: value for name, value in body.items() if name not in {"max_tokens", "rag"}}
        assert (await http.post("/v1/messages/count_tokens", json=counted)).json()["input_tokens"] > 0
        counted = {"model": "mindfu-demo", "input": "hi", "server_tools": True}
        assert (await http.post("/v1/responses/input_tokens", json=counted)).status_code == 200


async def test_chat_runs_tools_where_they_are_switched_on(gateway, model, key, notes):
    """By the request, or by `/command tools on` for who may have them; a request that says no has none."""
    weather = calls(("get_weather", {"location": "Bern"}))
    plain = await gateway.key("default")
    async with gateway.http(key) as http, gateway.http(plain) as others:
        body = {"messages": ASKED, "rag": False, "session_id": "tools"}
        model.will(weather)
        told = (await http.post("/chat", json=body | {"enable_tools": True})).json()
        assert (told["response"], told["tools_used"]) == ("It is so.", ["get_weather(Bern)"])
        assert told["tokens_total"] == 24
        model.will(weather)
        stream = (await http.post("/chat", json=body | {"enable_tools": ["get_weather"], "stream": True})).text
        assert json.loads(stream.strip().split("data: ")[-1])["tools_used"] == ["get_weather(Bern)"]
        refused = await others.post("/chat", json=body | {"enable_tools": True})
        assert refused.status_code == 403
        admin = gateway.http(await gateway.key("default", "admin"))
        assert (await admin.post("/command", json={"command": "tools", "value": "on"})).status_code == 200
        for who, more, offered in ((http, {}, 16), (others, {}, 0), (http, {"enable_tools": False}, 0)):
            model.will()
            await who.post("/chat", json=body | more)
            assert len(model.asked[0].tools) == offered
        await admin.post("/command", json={"command": "tools", "value": "off"})
        await admin.aclose()


async def test_streams_are_what_strict_sdks_take(gateway, model, key, notes):
    """OpenAI's and Anthropic's own clients, validating what they get; the last event says what was used."""
    read = calls(("read_file", {"path": str(notes)}), text="Let me see.")
    transport = httpx2.ASGITransport(gateway.app)
    async with httpx2.AsyncClient(transport=transport) as http:
        client = openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key=key,
            http_client=http,
            max_retries=0,
            _strict_response_validation=True,
        )
        asked: Any = {"model": "mindfu-demo", "extra_body": {"server_tools": True, "rag": False}}
        model.will(read)
        async with client.chat.completions.stream(messages=ASKED, **asked) as chunks:
            events = [event async for event in chunks if event.type == "chunk"]
            final = await chunks.get_final_completion()
        assert (final.choices[0].message.content, final.choices[0].finish_reason) == (
            "Let me see.\n\nIt is so.",
            "stop",
        )
        used = [
            event.chunk.model_extra["tools_used"] for event in events if "tools_used" in (event.chunk.model_extra or {})
        ]
        assert len(used) == 1
        model.will(read)
        async with client.responses.stream(input="hi", **asked) as stream:
            response = [event async for event in stream][-1].response
        assert (response.output_text, len(response.tools_used)) == ("Let me see.\n\nIt is so.", 1)
        model.will(read)
        claude = anthropic.AsyncAnthropic(
            base_url="http://localhost", api_key=key, http_client=http, max_retries=0, _strict_response_validation=True
        )
        async with claude.messages.stream(max_tokens=99, messages=ASKED, **asked) as stream:
            message = await stream.get_final_message()
        assert [block.text for block in message.content] == ["Let me see.\n\nIt is so."]


async def test_a_real_model_calls_and_is_told(tmp_path):
    """The demo model on its own engine: template and grammar bring the call, the next prompt tells its result."""
    replica = LlamaCpp(LLMSettings(), tmp_path)
    try:
        async with (
            whole(tmp_path, Settings(tools=ToolSettings(enabled=True)), llm=replica) as gateway,
            gateway.http() as http,
        ):
            body: dict[str, Any] = {"model": "mindfu-demo", "messages": ASKED, "rag": False, "max_tokens": 80}
            body |= {"server_tools": ["get_current_directory"], "temperature": 0, "tool_choice": "required"}
            told = (await http.post("/v1/chat/completions", json=body)).json()
            turn = (await _turns(http))[0]
    finally:
        replica.close()
    assert told["tools_used"][0] == "get_current_directory()"
    assert told["choices"][0]["finish_reason"] in {"stop", "length"}
    assert json.loads(turn["extras"]["steps"][1]["content"])["path"] == str(
        tmp_path.resolve() / "workspace" / "default"
    )
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "the second prompt goes on from the first"


async def _turns(http: Any) -> Any:
    """Of the latest conversation."""
    conversation = (await http.get("/v1/conversations?limit=1")).json()["data"][0]["id"]
    return (await http.get(f"/v1/conversations/{conversation}")).json()["turns"]


async def test_a_client_that_leaves_in_mid_answer_leaves_a_turn_with_its_calls(gateway, model, key, notes):
    """As cancelled: what ran, ran."""
    silent = asyncio.Event()

    class Stalls(Model):
        async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done]:
            if len(request.messages) > 1:
                yield Delta("Well", 1)
                silent.set()
                await asyncio.Event().wait()
            async for item in super().generate(request):
                yield item

    stalls = Stalls()
    stalls.will(calls(("read_file", {"path": str(notes)})))
    before, gateway.gateway.answering.llm = gateway.gateway.answering.llm, Local(stalls)
    try:
        leaving = asyncio.create_task(chat(gateway, key, server_tools=True, stream=True))
        await silent.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.gather(*gateway.gateway.answering.background)
    finally:
        gateway.gateway.answering.llm = before
    async with gateway.http(key) as http:
        (turn,) = await _turns(http)
    assert (turn["status"], turn["answer"]["content"]) == ("cancelled", "Well")
    assert [run["name"] for run in turn["extras"]["tool_runs"]] == ["read_file"]
