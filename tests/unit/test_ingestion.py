"""Runs of an ingestion keep a collection equal to its places, without a memory of their own."""

import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from app.errors import MindFuError, Unavailable, UnreadableDocument, UnsupportedMedia
from app.ingestion import Held, Ingestion, Outcome, Report, refused
from app.sources import Source, find, read


class Shelf:
    """A library that keeps contents in a dict. Files that hold "broken" cannot be read."""

    def __init__(self) -> None:
        self.documents: dict[str, Held] = {}
        self.sent: list[str] = []
        self.away = False

    def held(self) -> Iterator[Held]:
        return iter(tuple(self.documents.values()))

    def send(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        for source in sources:
            self.sent.append(source.name)
            data = read(source, max_bytes=1000).data
            digest = sha256(data).hexdigest()
            if data == b"broken":
                yield refused(source, UnreadableDocument(source.name, "it is broken"))
            elif b"\0" in data:
                yield refused(source, UnsupportedMedia(source.name, "binary data", ("text",)))
            elif there := known.get(digest) or next((i for i, d in self.documents.items() if d.sha256 == digest), None):
                yield Outcome(source.uri, "duplicate", document=there)
            else:
                document = f"doc_{len(self.sent)}"
                self.documents[document] = Held(document, digest, len(data), source.uri, source.version)
                yield Outcome(source.uri, "added", document=document, chunks=1, size=len(data))

    def delete(self, document: str) -> None:
        if self.away:
            raise Unavailable("librarian", "away")
        del self.documents[document]

    def contents(self) -> list[str]:
        """The names of the sources."""
        return sorted(str(held.source).rpartition("/")[2] for held in self.documents.values())


class Silent:
    """Follows a run. total: what was planned."""

    def planned(self, documents: int) -> None:
        self.total = documents

    def saw(self, outcome: Outcome) -> None: ...


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.md, b.md and sub/c.md."""
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for name in ("a.md", "b.md", "sub/c.md"):
        (tmp_path / "docs" / name).write_text(f"content of {name}")
    return tmp_path / "docs"


def run(shelf: Shelf, *places: object, keep: bool = False) -> Report:
    """One run of a command that knows nothing of earlier ones."""
    return Ingestion([str(place) for place in places], shelf, keep=keep).run(Silent())


def change(path: Path, content: str) -> None:
    """Write, at a time that differs from the last."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_second_run_reads_nothing_again(folder, shelf):
    """What has the size and time that its document remembers is unchanged."""
    assert run(shelf, folder).counts == {"added": 3}
    shelf.sent.clear()
    report = run(shelf, folder)
    assert (report.counts, report.outcomes, shelf.sent) == ({"unchanged": 3}, [], [])


def test_new_changed_and_deleted_files_are_followed(folder, shelf):
    """The old document of a changed file goes when the new one is in."""
    run(shelf, folder)
    change(folder / "a.md", "another content")
    (folder / "b.md").unlink()
    (folder / "new.md").write_text("new")
    assert run(shelf, folder).counts == {"added": 2, "unchanged": 1, "deleted": 1}
    assert shelf.contents() == ["a.md", "c.md", "new.md"]


def test_a_run_that_was_killed_is_resumed_where_it_was(folder, shelf):
    """No document twice, and none left out."""
    sending = shelf.send(_sources(folder), {})
    next(sending)
    sending.close()
    assert run(shelf, folder).counts == {"added": 2, "unchanged": 1}
    assert shelf.contents() == ["a.md", "b.md", "c.md"]


def _sources(folder: Path) -> list[Source]:
    return [found for found in find([str(folder)]) if isinstance(found, Source)]


def test_a_touched_file_is_no_other_document(folder, shelf):
    """The content decides."""
    run(shelf, folder)
    change(folder / "a.md", "content of a.md")
    assert run(shelf, folder).counts == {"duplicate": 1, "unchanged": 2}
    assert len(shelf.documents) == 3


def test_a_content_stays_as_long_as_one_of_its_files_does(folder, shelf):
    """Two files with the same content are one document, whichever of them goes first."""
    (folder / "copy.md").write_text("content of a.md")
    assert run(shelf, folder).counts == {"added": 3, "duplicate": 1}
    (folder / "a.md").unlink()
    assert run(shelf, folder).counts == {"duplicate": 1, "unchanged": 2}
    (folder / "copy.md").unlink()
    assert run(shelf, folder).counts == {"deleted": 1, "unchanged": 2}


def test_what_was_uploaded_by_hand_is_never_deleted(folder, shelf):
    """Nor what came from another folder, nor, with `keep`, anything at all."""
    shelf.documents["doc_hand"] = Held("doc_hand", "0" * 64, 5, None, None)
    run(shelf, folder)
    (folder / "a.md").unlink()
    assert run(shelf, folder / "sub").counts == {"unchanged": 1}
    assert run(shelf, folder, keep=True).counts == {"unchanged": 2}
    assert run(shelf, folder).counts == {"unchanged": 2, "deleted": 1}
    assert "doc_hand" in shelf.documents


def test_an_empty_folder_deletes_nothing(folder, shelf):
    """It may be a disk that is not mounted."""
    run(shelf, folder)
    for path in folder.rglob("*.md"):
        path.unlink()
    (folder / "sub").rmdir()
    assert run(shelf, folder).counts == {}
    assert len(shelf.documents) == 3


def test_a_folder_that_cannot_be_opened_deletes_nothing_below_it(folder, shelf, monkeypatch):
    """What cannot be seen is not gone. (Permissions do not stop the tests' user where that is root.)"""
    run(shelf, folder)
    listing = Path.iterdir

    def closed(path: Path) -> Iterator[Path]:
        if path.name == "sub":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    report = run(shelf, folder)
    assert report.counts == {"unchanged": 2, "failed": 1}
    assert "Permission denied" in report.of("failed")[0].why
    assert len(shelf.documents) == 3


def test_a_failure_keeps_the_old_document_and_the_others_go_on(folder, shelf):
    """It is reported, and tried again by the next command."""
    run(shelf, folder)
    change(folder / "a.md", "broken")
    (folder / "new.md").write_text("new")
    for _ in range(2):
        report = run(shelf, folder)
        assert [outcome.why for outcome in report.of("failed")] == ["'a.md' could not be read: it is broken."]
        assert shelf.contents() == ["a.md", "b.md", "c.md", "new.md"]


def test_while_watching_a_failure_is_told_once(folder, shelf):
    """Until the file changes."""
    (folder / "a.md").write_text("broken")
    watching = Ingestion([str(folder)], shelf)
    assert watching.run(Silent()).counts == {"added": 2, "failed": 1}
    watching.learn()
    assert watching.run(Silent()).counts == {"unchanged": 2}
    change(folder / "a.md", "whole")
    watching.learn()
    assert watching.run(Silent()).counts == {"unchanged": 2, "added": 1}


def test_what_became_unreadable_or_empty_is_let_go(folder, shelf):
    """It holds nothing that could be found."""
    run(shelf, folder)
    change(folder / "a.md", "")
    change(folder / "b.md", "bin\0ary")
    assert run(shelf, folder).counts == {"unchanged": 1, "skipped": 2, "deleted": 2}
    assert shelf.contents() == ["c.md"]


def test_a_deletion_that_fails_is_a_failure(folder, shelf):
    """And is made up for by the next run."""
    run(shelf, folder)
    (folder / "a.md").unlink()
    shelf.away = True
    assert run(shelf, folder).counts == {"unchanged": 2, "failed": 1}
    shelf.away = False
    assert run(shelf, folder).counts == {"unchanged": 2, "deleted": 1}


def test_a_binary_file_is_a_failure_only_where_it_was_named(folder, shelf):
    """In a folder it is nothing special."""
    (folder / "LICENSE").write_bytes(b"\0\1")
    assert run(shelf, folder).counts == {"added": 3, "skipped": 1}
    assert run(shelf, folder / "LICENSE").counts == {"failed": 1}


def test_what_is_planned_is_what_will_be_read(folder, shelf):
    """The progress bar's length."""
    run(shelf, folder / "a.md")
    silent = Silent()
    Ingestion([str(folder)], shelf).run(silent)
    assert silent.total == 2


def test_an_error_of_the_library_as_a_whole_ends_the_run(folder, shelf):
    """It is no failure of a document."""
    shelf.send = _away  # type: ignore[method-assign]
    with pytest.raises(MindFuError, match="away"):
        run(shelf, folder)


def _away(*_: object) -> Iterator[Outcome]:
    raise Unavailable("server", "away")
