"""Pushing to a hub, by Hugging Face's own client, against a server that speaks the part of its protocol that it uses.

What is not shown here: uploads of large files through Xet, which only the Hub itself has.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from app.errors import InvalidRequest, Misconfigured, Unavailable
from train import push, stages
from train.push import Push

pytestmark = pytest.mark.integration

TOKEN = "hf_" + "x" * 30


class Hub:
    """Keeps what is committed. forgets: files that it loses; made: what repositories were asked for."""

    def __init__(self, *forgets: str) -> None:
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.forgets = forgets
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
            for name, data in self.files.items()
        ]

    def commit(self, lines: list[dict[str, Any]]) -> dict[str, str]:
        for line in lines:
            if line["key"] == "file" and line["value"]["path"] not in self.forgets:
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{self.url}/org/name/commit/c0ffee", "commitOid": "c0ffee"}


class Handler(BaseHTTPRequestHandler):
    """Speaks for a Hub; everything needs the token."""

    server: Any

    def do_GET(self) -> None:
        sha = {"id": "org/name", "sha": "c0ffee", "siblings": []}
        self._answer(self.server.hub.tree() if "/tree/" in self.path else sha)

    def do_POST(self) -> None:
        hub, body = self.server.hub, self.rfile.read(int(self.headers["content-length"]))
        told: Any = {}  # of validate-yaml
        if self.path.endswith("/repos/create"):
            hub.made.append(json.loads(body))
            told = {"url": f"{hub.url}/org/name"}
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            told = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        elif "/commit/" in self.path and self._knows():
            told = hub.commit([json.loads(line) for line in body.splitlines()])
        self._answer(told)

    def _knows(self) -> bool:
        return bool(self.headers["authorization"] == f"Bearer {TOKEN}")

    def _answer(self, told: Any) -> None:
        data = json.dumps(told if self._knows() else {"error": "Invalid username or password."}).encode()
        self.send_response(200 if self._knows() else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def running(*forgets: str) -> Iterator[Hub]:
    hub = Hub(*forgets)
    thread = threading.Thread(target=hub.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.http.shutdown()
        hub.http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment of the tests says."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.utils.disable_progress_bars()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What the stage `formats` leaves."""
    folder = tmp_path / "runs" / "formats-1"
    (folder / "vllm").mkdir(parents=True)
    (folder / "adapter.gguf").write_bytes(b"GGUF" + bytes(3000))
    (folder / "vllm" / "config.json").write_text("{}")
    (folder / ".lock").write_text("")
    outputs = stages._outputs(folder)
    manifest = stages.Manifest(
        stage="formats", key="1" * 16, content="c", inputs={}, parameters={}, code="", outputs=outputs,
        facts={"mean_difference": {"gguf-lora": 0.004}}, created_at=datetime(2026, 11, 21, tzinfo=UTC), seconds=1.0,
    )  # fmt: skip
    (folder / stages.MANIFEST).write_text(manifest.model_dump_json())
    return folder


def pushed(made: Path, **parameters: Any) -> stages.Manifest:
    told = Push.model_validate({"repo": "org/name", **parameters})
    return stages.manifest(stages.run(push.STAGE, inputs={"formats": made}, parameters=told, home=made.parents[1]))


def test_every_file_is_there_with_its_content(made: Path):
    """And a card that says how near each format is; nothing of ours beside them. Private, as long as nobody says so."""
    with running() as hub:
        told = pushed(made, endpoint=hub.url)
    assert set(hub.files) == {"README.md", "adapter.gguf", "vllm/config.json"}
    assert hub.files["adapter.gguf"] == (made / "adapter.gguf").read_bytes()
    assert b"| gguf-lora | 0.004 |" in hub.files["README.md"]
    assert (hub.made[0]["name"], hub.made[0]["organization"]) == ("name", "org")
    assert hub.made[0].get("private") or hub.made[0].get("visibility") == "private"
    assert (told.facts["commit"], told.counts["files"]) == ("c0ffee", 3)


def test_what_the_hub_does_not_have_in_the_end_was_not_pushed(made: Path):
    """Its word is not taken for it: the hashes are compared."""
    with running("adapter.gguf") as hub, pytest.raises(Unavailable, match="does not have what was pushed: adapter"):
        pushed(made, endpoint=hub.url)


def test_a_wrong_token_and_a_hub_that_is_away_are_told(made: Path, monkeypatch: pytest.MonkeyPatch):
    """Each by its name."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "y" * 30)
    with running() as hub, pytest.raises(InvalidRequest, match=r"refuses: .*401"):
        pushed(made, endpoint=hub.url)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        pushed(made, endpoint=hub.url)


def test_what_cannot_be_pushed_is_said_at_once(made: Path, monkeypatch: pytest.MonkeyPatch):
    """No token, no network allowed, no formats."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(Misconfigured, match="HF_TOKEN"):
        pushed(made)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Misconfigured, match="HF_HUB_OFFLINE"):
        pushed(made)
    manifest = json.loads((made / stages.MANIFEST).read_text()) | {"stage": "tune"}
    (made / stages.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InvalidRequest, match=r"not written by train\.formats"):
        pushed(made)
