"""`mindfu ingest` against the running server: many documents through Ray Data, whatever is among them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from tests import documents
from tests.acceptance.conftest import ROOT, Server

pytestmark = pytest.mark.integration

ZONES = 48
NO_TEXT = "tag-curves.pdf"  # a drawing


def ingest(server: Server, *arguments: object, **env: str) -> subprocess.Popen[bytes]:
    """A run that has begun."""
    environment = {**os.environ, "MINDFU_HOME": str(server.home), **env}
    command = [sys.executable, "-m", "deployments.cli", "ingest", *map(str, arguments), "--json"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def report(run: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    """Exit status and report of a run, when it has ended. It said nothing else, but for what Ray's core says."""
    said, complained = run.communicate(timeout=240)
    assert said, complained
    assert [line for line in complained.splitlines() if b"core_worker.cc" not in line] == []
    return run.returncode, json.loads(said)


def listed(server: Server, collection: str) -> list[dict[str, Any]]:
    with server.http() as http:
        return http.get("/v1/documents", params={"collection": collection, "limit": 1000}).json()["data"]


def folder(place: Path) -> Path:
    """A folder as they are: reports, sources and PDFs of a package, and all that goes wrong."""
    for number in range(ZONES):
        (place / f"zone{number}.md").write_text(f"# Zone {number}\n\nA paragraph of the report on zone{number}x. " * 4)
    for file in files("z3c.rml") or ():
        path = Path(str(file.locate()))
        if (file.suffix in {".py", ".txt"} and path.stat().st_size < 8000) or file.match("tag-c*.pdf"):
            target = place / str(file).replace("..", "up")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (place / "report.docx").write_bytes(documents.word(title="Harvest report"))
    (place / "page.html").write_text("<html><title>Barn</title><p>The barn is red.</p></html>")
    (place / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (place / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (place / "binary").write_bytes(bytes(range(256)))
    (place / "empty.md").touch()
    with (place / "huge.txt").open("wb") as file:
        file.truncate(33 * 2**20)
    (place / "loop").symlink_to(place)
    (place / "nowhere.md").symlink_to(place / "gone")
    return place


@dataclass(frozen=True)
class Resumed:
    """What a run left that was killed, and what the same command told when it was given again."""

    before: int
    status: int
    report: dict[str, Any]


@pytest.fixture(scope="module")
def resumed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """By kill -9, as soon as the first documents are in."""
    place = folder(tmp_path_factory.mktemp("mixed"))
    run = ingest(server, place, "--collection", "mixed", "--workers", 1)
    while run.poll() is None and not listed(server, "mixed"):
        time.sleep(0.05)  # a server tells nobody
    run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    before = len(listed(server, "mixed"))
    return Resumed(before, *report(ingest(server, place, "--collection", "mixed")))


def test_a_run_that_is_killed_is_resumed_without_a_gap_or_a_duplicate(server: Server, resumed: Resumed):
    """Every document is there once, and its passages are found once."""
    names = [one["name"] for one in listed(server, "mixed")]
    assert sorted(name for name in names if name.startswith("zone")) == sorted(f"zone{n}.md" for n in range(ZONES))
    counts = resumed.report["counts"]
    assert 0 < resumed.before <= counts["unchanged"] < len(names)  # what it had handed over came in without it
    assert counts["unchanged"] + counts["added"] == len(names)
    with server.http() as http:
        for number in (0, 29, ZONES - 1):
            query = {"query": f"zone{number}x", "collections": ["mixed"], "top_k": 20, "min_score": -1}
            found = http.post("/v1/documents/query", json=query).json()["data"]
            passages = [(one["chunk"], one["title"]) for one in found if f"zone{number}x" in one["text"]]
            assert passages
            assert len(set(passages)) == len(passages)


def test_a_real_folder_goes_in_by_one_command_with_a_report(server: Server, resumed: Resumed):
    """What can be read is in, what cannot is named with its reason, and the status says that something failed."""
    told = {one["uri"].rpartition("/")[2]: one for one in resumed.report["documents"] if one["why"]}
    assert resumed.status == 1
    failed = {name for name, one in told.items() if one["state"] == "failed"}
    ours = {"broken.pdf", "huge.txt", "nowhere.md"}
    assert {*ours, NO_TEXT} <= failed
    assert all(name.endswith(".pdf") and "there is no text in it" in told[name]["why"] for name in failed - ours)
    assert {"picture.png", "binary", "empty.md", "loop"} <= set(told)
    assert "limit is 33554432" in told["huge.txt"]["why"]
    held = listed(server, "mixed")
    assert {"report.docx", "page.html", "README.txt", "tag-color.pdf"} <= {one["name"] for one in held}
    assert sum(one["name"].endswith(".py") for one in held) > 3
    assert resumed.report["chunks"] <= sum(one["chunks"] for one in held)  # the rest by the run that was killed


def test_a_folder_is_followed_over_http_as_well(server: Server, tmp_path: Path):
    """From any machine with a URL and a key: new, changed and deleted files; and through Ray they are the same."""
    (tmp_path / "a.md").write_text("# Apples\n\nApples are red.")
    (tmp_path / "b.md").write_text("# Pears\n\nPears are green.")
    there = {"MINDFU_URL": f"{server.url}/v1"}
    assert report(ingest(server, tmp_path, "--collection", "fruit", **there))[1]["counts"] == {"added": 2}
    (tmp_path / "a.md").write_text("# Apples\n\nApples are yellow.")
    (tmp_path / "b.md").unlink()
    status, told = report(ingest(server, tmp_path, "--collection", "fruit", **there))
    assert (status, told["counts"]) == (0, {"added": 1, "deleted": 1})
    (document,) = listed(server, "fruit")
    assert (document["title"], document["metadata"]["source"].endswith("/a.md")) == ("Apples", True)
    status, told = report(ingest(server, tmp_path, tmp_path / "a.md", "--collection", "fruit"))
    assert told["counts"] == {"unchanged": 1}
