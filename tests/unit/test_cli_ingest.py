"""`mindfu ingest` says what it did, and why it could not."""

import io
import json
from pathlib import Path

import pytest

from app.ingestion import Outcome, Report
from deployments import cli_ingest
from tests.command import mindfu


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that no server runs on."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MINDFU_URL", raising=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Name what to take in"),
        (("x", "--metadata", "year"), "'year' is no KEY=VALUE."),
        (("x", "--collection", "a/b"), "'a/b' is no collection name"),
        (("--from", "no-such-file"), "No such file or directory: 'no-such-file'"),
        (("x",), "Start it with `mindfu serve`, or name one with --url"),
    ],
)
def test_what_cannot_begin_is_told_and_ends_with_two(arguments, said, capsys):
    """Before anything is read."""
    assert mindfu("ingest", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_list_has_one_place_a_line(tmp_path, monkeypatch):
    """Remarks and empty lines are none; it may come from standard input."""
    text = "# pages\nhttps://example.org/a b\n\n  notes/*.md  \n"
    (tmp_path / "list").write_text(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    for file in (str(tmp_path / "list"), "-"):
        assert cli_ingest._listed(file) == ["https://example.org/a b", "notes/*.md"]


def report() -> Report:
    """One of each kind, and many failures."""
    found = Report(seconds=2.0)
    found.note(Outcome("file:///a.md", "added", document="doc_a", chunks=7, size=100))
    found.note(Outcome("file:///b.md", "unchanged"))
    for number in range(25):
        found.note(Outcome(f"file:///{number}.pdf", "failed", "it is broken"))
    return found


def test_the_report_counts_everything_and_names_failures():
    """Those that do not fit a screen are in the JSON."""
    lines = cli_ingest._as_text(report()).splitlines()
    assert lines[0] == "1 added, 1 unchanged, 25 failed; 7 chunks, 3.5 a second, in 2.0 s"
    assert lines[1] == "  failed file:///0.pdf: it is broken"
    assert (len(lines), lines[-1]) == (22, "  … and 5 more failed; --json names them all")
    assert cli_ingest._as_text(Report()).startswith("nothing found")


def test_the_report_for_programs_has_every_document():
    """But for those unchanged, which are counted."""
    data = json.loads(json.dumps(cli_ingest._as_json(report())))
    assert data["counts"] == {"added": 1, "unchanged": 1, "failed": 25}
    assert (data["chunks"], data["bytes"], len(data["documents"])) == (7, 100, 26)
    assert data["documents"][0] == {
        "uri": "file:///a.md", "state": "added", "why": "", "document": "doc_a", "chunks": 7, "size": 100,
    }  # fmt: skip
