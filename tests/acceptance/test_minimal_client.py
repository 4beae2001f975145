"""The client of a few lines that docs/sessions.md shows, run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration

DOC = Path(__file__).parents[2] / "docs" / "sessions.md"


def test_the_client_of_the_documentation_talks(server: Server):
    """Two questions, two answers, one conversation."""
    shown = re.search(r"```python\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
    assert shown
    program = shown[1].replace("http://127.0.0.1:11434", server.url)
    typed = "What are you?\nWhat did I ask?\n\n"
    done = subprocess.run(
        [sys.executable, "-c", program], input=typed, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.split("> ") if line.strip()]) == 2, done.stdout
    with server.http() as http:
        latest = http.get("/v1/conversations", params={"limit": 1}).json()["data"][0]
    assert (latest["title"], latest["turns"]) == ("What are you?", 2)
