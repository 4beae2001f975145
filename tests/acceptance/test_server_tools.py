"""The server's tools in a process of their own, called by the model that comes along."""

import json
import time
from typing import Any

import pytest

from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration
ASKED = [{"role": "user", "content": "Which folder do you work in?"}]
WHERE: Any = {"type": "function", "function": {"name": "get_current_directory"}}


def test_a_call_runs_in_the_tools_process_and_its_result_reaches_the_model(server: Server):
    """Whole and streamed; the turn keeps what the model was told: the tenant's folder in this server's home."""
    asked: Any = {
        "model": "mindfu-demo",
        "messages": ASKED,
        "max_tokens": 60,
        "temperature": 0,
        "tool_choice": WHERE,
        "extra_body": {"server_tools": ["get_current_directory", "lookup_hostname"], "rag": False},
    }
    with server.openai() as client:
        answer = client.chat.completions.with_raw_response.create(**asked)
        whole = answer.parse()
        last = list(client.chat.completions.create(**asked, stream=True))[-1]
    assert whole.tools_used[0] == "get_current_directory()"
    assert whole.choices[0].finish_reason in {"stop", "length"}
    assert last.tools_used[0] == "get_current_directory()"
    workspace = server.home.resolve() / "workspace" / "default"
    kept = _extras(server, answer.headers["x-conversation-id"])
    assert kept["tool_runs"][0]["status"] == "success"
    assert json.loads(kept["steps"][1]["content"])["path"] == str(workspace)
    assert workspace.stat().st_mode & 0o777 == 0o700
    with server.http() as http:
        assert http.get("/health").json()["parts"]["tools"] == "ok"


def test_a_call_reaches_an_mcp_server_that_the_tools_process_started(server: Server):
    """By its standard streams."""
    asked: Any = {"model": "mindfu-demo", "messages": ASKED, "max_tokens": 60, "temperature": 0, "rag": False}
    with server.http() as http:
        assert http.get("/v1/tools").json()["mcp_servers"] == {"test": "ok"}
        body = asked | {"tool_choice": "required", "server_tools": ["test__plain"]}
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.json()["tools_used"][0].startswith("test__plain(")  # its schema lets the model say what it likes
    kept = _extras(server, answer.headers["x-conversation-id"])
    assert json.loads(kept["steps"][1]["content"]) == {"content": "hello"}


def test_a_tools_process_that_dies_is_replaced(server: Server):
    """And the model is told meanwhile, or waits for the next one."""
    replica = server.replica("Tools")
    replica.kill()
    replica.wait(30)
    with server.http() as http:
        told = http.post("/chat", json={"messages": ASKED, "enable_tools": ["get_current_directory"], "max_tokens": 20})
        assert told.status_code in {200, 503}
        deadline = time.monotonic() + 90
        while (listed := http.get("/v1/tools", timeout=90)).status_code != 200:
            assert time.monotonic() < deadline, listed.text
            time.sleep(0.5)
        assert {"read_file", "test__plain"} <= {tool["function"]["name"] for tool in listed.json()["data"]}


def _extras(server: Server, conversation: str) -> dict[str, Any]:
    """What the first turn of a conversation keeps beside its texts."""
    with server.http() as http:
        extras: dict[str, Any] = http.get(f"/v1/conversations/{conversation}").json()["turns"][0]["extras"]
    return extras
