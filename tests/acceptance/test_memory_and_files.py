"""Memory, files and vector stores of a running server: what was said and what was uploaded is found and cited."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration

HANDBOOK = Path(__file__).parents[2] / "docs" / "example-handbook.md"
BACKUP = "When does the backup of the file server run?"


def until(found: Callable[[], Any]) -> Any:
    """What is found as soon as it is: the server works on it by itself."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.2)
    pytest.fail("it did not happen within a minute")


def test_files_of_a_vector_store_are_searched_and_cited(server: Server):
    """The client's own flow: upload, put on a store, search, answer by file_search."""
    with server.openai() as client:
        file = client.files.create(file=HANDBOOK, purpose="assistants")
        store = client.vector_stores.create(name="handbook")
        put = client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=200)
        assert (put.status, put.last_error) == ("completed", None)
        best = client.vector_stores.search(store.id, query=BACKUP).data[0]
        assert (best.file_id, "2:30" in best.content[0].text) == (file.id, True)
        answer = client.responses.create(
            model="mindfu-demo", temperature=0, max_output_tokens=60, input=BACKUP,
            tools=[{"type": "file_search", "vector_store_ids": [store.id]}], include=["file_search_call.results"],
        )  # fmt: skip
        search = answer.output[0]
        assert search.type == "file_search_call"
        assert file.id in {result.file_id for result in search.results or ()}
        client.vector_stores.delete(store.id)
        client.files.delete(file.id)


def test_an_imported_conversation_is_remembered_where_memory_is_on(server: Server, tmp_path: Path):
    """`mindfu ingest-logs` beside the running server, which finds what was said a moment later."""
    log = tmp_path / "chats.jsonl"
    log.write_text(
        '{"messages": [{"role": "user", "content": "What is the code of the garden gate?"}, '
        '{"role": "assistant", "content": "The code of the garden gate is 4711."}]}\n'
    )
    environment = {**os.environ, "MINDFU_HOME": str(server.home)}
    command = [sys.executable, "-m", "deployments.cli", "ingest-logs", str(log)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert "new: 1 turns in 1 conversations" in told.stdout
    ask: dict[str, Any] = {
        "model": "mindfu-demo", "temperature": 0, "max_tokens": 40,
        "messages": [{"role": "user", "content": "Which code has the garden gate?"}],
    }  # fmt: skip
    with server.openai() as client:

        def remembered() -> Any:
            answer = client.chat.completions.create(**ask, extra_body={"rag": {"collections": ["conversations"]}})
            return [source for source in (answer.model_extra or {})["sources"] if "4711" in source["text"]]

        source = until(remembered)[0]
        assert source["title"].endswith("What is the code of the garden gate?")
        forgotten = client.chat.completions.create(**ask)
        assert "conversations" not in {source["collection"] for source in (forgotten.model_extra or {})["sources"]}
