"""Taken down over HTTP and started again, as operators do."""

import json
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import STOP_S, Server, running

pytestmark = pytest.mark.integration

KEY = {"authorization": "Bearer secret"}


def ended(server: Server) -> bool:
    """Whether it ends by itself. Its exit status is left for who started it."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if psutil.Process(server.process.pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    return False


def test_a_session_goes_on_after_a_shutdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An answer that runs ends first; what was said and what was set is there again after the next start."""
    monkeypatch.setenv("MINDFU_API_KEY", "secret")
    hello = {"messages": [{"role": "user", "content": "What are you?"}], "rag": False, "max_tokens": 100}
    with running(tmp_path) as server, server.http() as http:
        assert http.post("/command", json={"command": "system", "value": "Be brief."}, headers=KEY).status_code == 200
        assert http.post("/shutdown").status_code == 401
        with http.stream("POST", "/chat", json=hello | {"stream": True}, headers=KEY) as answer:
            lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
            first = json.loads(next(lines))
            assert http.post("/shutdown", headers=KEY).json()["status"] == "success"
            last = json.loads([*lines, "{}"][-2]) if "done" not in first else first
        assert last["done"] is True
        assert ended(server)
    with running(tmp_path) as server, server.http() as http:
        told = http.post("/chat", json=hello, headers=KEY).json()
        assert told["conversation_id"] == last["conversation_id"]
        assert told["tokens_input"] > last["tokens_input"]
        assert http.post("/command", json={"command": "system"}, headers=KEY).json()["current_value"] == "Be brief."
