"""Downloading from a hub: a small HTTP server of our own stands in for Hugging Face's."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

pytestmark = pytest.mark.integration

CHILD = """
import sys
from pathlib import Path
from app.errors import Misconfigured
from app.llama.source import locate, present
for model in sys.argv[2:]:
    print(present(model, Path(sys.argv[1])))
    try:
        print(locate(model, Path(sys.argv[1])))
    except Misconfigured as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """Has one file, q8/model.gguf of org/repo."""

    downloads = 0

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        Hub.downloads += "/resolve/" in self.path
        self.answer(b"GGUF and so on")

    def answer(self, body: bytes):
        found = self.path == "/org/repo/resolve/main/q8/model.gguf"
        self.send_response(200 if found else 404)
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "14" if found else "0")
        self.end_headers()
        self.wfile.write(body if found else b"")

    def log_message(self, *_: object):
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_model_is_downloaded_once_into_the_home_folder(hub: str, tmp_path: Path):
    """A second start finds it there, and says so without asking the hub; a wrong address is a clear error."""
    models = ["hf://org/repo/q8/model.gguf", "hf://org/repo/q8/model.gguf", "hf://org/repo/other.gguf"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CHILD, str(tmp_path), *models]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    before, first, after, second, never, wrong = printed.splitlines()
    assert (before, after, never) == ("None", first, "None")
    assert first == second
    assert Path(first).is_relative_to(tmp_path / "models")
    assert Path(first).read_bytes() == b"GGUF and so on"
    assert "cannot be downloaded" in wrong
    assert Hub.downloads == 1
