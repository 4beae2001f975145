"""The client of a few lines that docs/sessions.md shows, run as it stands there, but for whom it asks, and greedily."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration

DOCS = Path(__file__).parents[2] / "docs"


def test_the_client_of_the_documentation_talks(server: Server):
    """Two questions, two answers, one conversation."""
    shown = re.search(r"```python\n(.*?)```", (DOCS / "sessions.md").read_text("utf-8"), re.DOTALL)
    assert shown
    program = shown[1].replace("http://127.0.0.1:11434", server.url).replace("}]}", '}], "temperature": 0}')
    assert '"temperature": 0' in program
    typed = "What are you?\nWhat did I ask?\n\n"
    done = subprocess.run(
        [sys.executable, "-c", program], input=typed, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.split("> ") if line.strip()]) == 2, done.stdout
    with server.http() as http:
        latest = http.get("/v1/conversations", params={"limit": 1}).json()["data"][0]
    assert (latest["title"], latest["turns"]) == ("What are you?", 2)


def test_a_chat_answers_from_the_documents(server: Server):
    """With what a client says by default, which is nothing: the length of the answer yields to its sources."""
    question = {"messages": [{"role": "user", "content": "When does the backup of the file server run?"}]}
    within = {"rag": {"collections": ["chat"]}, "session_id": "documents", "temperature": 0}
    with server.http() as http, (DOCS / "example-handbook.md").open("rb") as handbook:
        form = {"collection": "chat"}
        http.post("/v1/documents/upload", files={"file": handbook}, data=form).raise_for_status()
        told = http.post("/chat", json=question | within).json()
    assert "2:30" in told["response"]
    assert {source["title"] for source in told["sources"]} == {"Handbook of Northwind Instruments"}
