"""A data set of the Hub by its name: a small HTTP server of our own stands in for Hugging Face's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from train import lines

pytestmark = pytest.mark.integration

REVISION = "a" * 40
ROWS = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Hi.", "input": "", "output": "Ho."},
]
FILE = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LISTED = {"type": "file", "path": "train.jsonl", "size": len(FILE), "oid": "1" * 40}
INFO = {"id": "org/name", "sha": REVISION, "private": False, "gated": False, "disabled": False, "tags": [],
        "siblings": [{"rfilename": "train.jsonl"}]}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """Has one file, train.jsonl of the data set org/name."""

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        wanted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer([LISTED] if "train.jsonl" in wanted else [])

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == f"/datasets/org/name/resolve/{REVISION}/train.jsonl":
            self.answer(FILE)
        elif path.startswith("/api/datasets/org/name/tree/"):
            self.answer([LISTED] if path.endswith(("/main", REVISION)) else [])
        elif path in {"/api/datasets/org/name", f"/api/datasets/org/name/revision/{REVISION}",
                      "/api/datasets/org/name/revision/main"}:  # fmt: skip
            self.answer(INFO)
        else:
            known = path.startswith(("/datasets/org/name/", "/api/datasets/org/name/"))
            self.answer(b"", status=404, error="EntryNotFound" if known else "RepoNotFound")

    def answer(self, told: object, status: int = 200, error: str = ""):
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("ETag", f'"{"1" * 40}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

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


def converted(hub: str, home: Path, name: str) -> subprocess.CompletedProcess[str]:
    """`python -m train.convert` in a process of its own: the Hub's address is read when its library is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home / "hf"),
        "MINDFU_HOME": str(home),
    }
    command = [sys.executable, "-m", "train.convert", "--params=/dev/null", "--set", f"dataset={name}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_a_data_set_of_the_hub_is_read_by_its_name(hub: str, tmp_path: Path) -> None:
    """Its revision is part of what the stage's folder is known by; one that is not there is told in a sentence."""
    done = converted(hub, tmp_path, "org/name")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    said = [[message.content for message in line.messages] for line in lines.read(folder / "data.jsonl")]
    assert said == [["Add.\n\n1 and 2", "3"], ["Hi.", "Ho."]]
    assert json.loads((folder / "manifest.json").read_text())["inputs"]["dataset"]["content"] == REVISION
    wrong = converted(hub, tmp_path, "org/other")
    assert wrong.returncode == 2
    assert "The data set org/other cannot be read" in wrong.stderr
    assert "Traceback" not in wrong.stderr
