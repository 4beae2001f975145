"""`mindfu ingest` against the running server: many documents through Ray Data, whatever is among them."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from tests import documents
from tests.acceptance.conftest import ROOT, Server

pytestmark = pytest.mark.integration


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "deployments.cli", "ingest", *map(str, arguments), "--json"]


def ingest(server: Server, *arguments: object, **env: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report of a run."""
    environment = {**os.environ, "MINDFU_HOME": str(server.home), **env}
    run = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, complained = run.communicate(timeout=240)
    assert said, complained
    return run.returncode, json.loads(said)


def listed(server: Server, collection: str) -> list[dict[str, Any]]:
    with server.http() as http:
        return http.get("/v1/documents", params={"collection": collection, "limit": 1000}).json()["data"]


def test_a_run_that_is_killed_is_resumed_without_a_gap_or_a_duplicate(server: Server, tmp_path: Path):
    """By kill -9 in the middle. The same command again, and every document is there once, and found."""
    for number in range(60):
        text = "\n\n".join(f"Paragraph {line} of the report on zone{number}x. " * 8 for line in range(4))
        (tmp_path / f"{number}.md").write_text(f"# Zone {number}\n\n{text}")
    environment = {**os.environ, "MINDFU_HOME": str(server.home)}
    run = subprocess.Popen(
        command(tmp_path, "--collection", "zones", "--workers", 1), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    while run.poll() is None and not listed(server, "zones"):
        time.sleep(0.05)  # until the first documents are in: a server tells nobody
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    before = len(listed(server, "zones"))
    assert 0 < before < 60
    status, report = ingest(server, tmp_path, "--collection", "zones")
    assert (status, sum(report["counts"].values())) == (0, 60)
    names = sorted(int(one["name"].removesuffix(".md")) for one in listed(server, "zones"))
    assert names == list(range(60))
    with server.http() as http:
        for number in (0, 29, 59):
            query = {"query": f"zone{number}x", "collections": ["zones"], "top_k": 20, "min_score": -1}
            found = http.post("/v1/documents/query", json=query).json()["data"]
            passages = [(one["chunk"], one["title"]) for one in found if f"zone{number}x" in one["text"]]
            assert passages
            assert len(set(passages)) == len(passages)
    status, report = ingest(server, tmp_path, "--collection", "zones")
    assert (status, report["counts"]) == (0, {"unchanged": 60})


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as they are: a package with its sources, documentation and PDFs, and all that goes wrong."""
    for file in files("z3c.rml") or ():
        if file.suffix in {".py", ".pdf", ".txt", ".rst", ".html", ".md"} and file.locate().stat().st_size < 200_000:
            target = tmp_path / str(file).replace("..", "up")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(str(file.locate())).read_bytes())
    (tmp_path / "report.docx").write_bytes(documents.word(title="Harvest report"))
    (tmp_path / "page.html").write_text("<html><title>Barn</title><p>The barn is red.</p></html>")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "empty.md").touch()
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(33 * 2**20)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere.md").symlink_to(tmp_path / "gone")
    return tmp_path


def test_a_real_folder_goes_in_by_one_command_with_a_report(server: Server, mixed: Path):
    """What can be read is in, what cannot is named with its reason, and the status says that something failed."""
    status, report = ingest(server, mixed, "--collection", "mixed")
    why = {one["uri"].rpartition("/")[2]: one["why"] for one in report["documents"] if one["why"]}
    assert status == 1
    failed = {one["uri"].rpartition("/")[2] for one in report["documents"] if one["state"] == "failed"}
    ours = {"broken.pdf", "huge.txt", "nowhere.md"}
    assert ours < failed
    assert all(name.endswith(".pdf") and "there is no text in it" in why[name] for name in failed - ours)
    assert {"picture.png", "binary", "empty.md", "loop"} <= set(why)
    assert "limit is 33554432" in why["huge.txt"]
    held = {one["name"] for one in listed(server, "mixed")}
    assert {"report.docx", "page.html", "canvas.py"} <= held
    assert len(held) > 20
    assert report["chunks"] == sum(one["chunks"] for one in listed(server, "mixed"))


def test_a_folder_is_followed_over_http_as_well(server: Server, tmp_path: Path):
    """From any machine with a URL and a key: new, changed and deleted files."""
    (tmp_path / "a.md").write_text("# Apples\n\nApples are red.")
    (tmp_path / "b.md").write_text("# Pears\n\nPears are green.")
    there = {"MINDFU_URL": f"{server.url}/v1"}
    assert ingest(server, tmp_path, "--collection", "fruit", **there)[1]["counts"] == {"added": 2}
    (tmp_path / "a.md").write_text("# Apples\n\nApples are yellow.")
    (tmp_path / "b.md").unlink()
    status, report = ingest(server, tmp_path, "--collection", "fruit", **there)
    assert (status, report["counts"]) == (0, {"added": 1, "deleted": 1})
    (document,) = listed(server, "fruit")
    assert (document["title"], document["metadata"]["source"].endswith("/a.md")) == ("Apples", True)
    status, report = ingest(server, tmp_path, tmp_path / "a.md", "--collection", "fruit")  # through Ray, in turn
    assert report["counts"] == {"unchanged": 1}
