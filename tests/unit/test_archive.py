"""A backup's file: whole and unchanged, or refused."""

import io
import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from app.archive import MANIFEST, Facts, extract, new_name, prune, writing
from app.errors import Conflict, InvalidRequest, Unavailable

FACTS = Facts(mindfu="1.2.3", created_at=datetime(2026, 1, 2, tzinfo=UTC), migrations={1: "ab"}, counts={"turns": 3})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small archive: two files in two folders."""
    for name, text in (("one", "1" * 5000), ("two", "")):
        (tmp_path / name).write_text(text)
    with writing(str(tmp_path / "backups" / "b.tar")) as archive:
        archive.add("a/one", tmp_path / "one")
        archive.add("b/c/two", tmp_path / "two")
        archive.close(FACTS)
    return tmp_path / "backups" / "b.tar"


def rewritten(source: Path, change: dict[str, bytes]) -> Path:
    """The same archive, with other content of some members, and further ones."""
    target = source.with_name("changed.tar")
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        members = {entry.name: old.extractfile(entry).read() for entry in old} | change
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    return target


def test_what_went_in_comes_out(source: Path, tmp_path: Path):
    """Files by their names, and the facts; any tar reads it, and only its owner may."""
    manifest = extract(str(source), tmp_path / "out")
    assert (manifest.facts, set(manifest.members)) == (FACTS, {"a/one", "b/c/two"})
    assert (tmp_path / "out/a/one").read_text() == "1" * 5000
    assert (tmp_path / "out/b/c/two").read_text() == ""
    with tarfile.open(source) as tar:
        assert tar.getnames() == ["a/one", "b/c/two", MANIFEST]
    assert source.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_an_archive_that_was_cut_off_is_refused(source: Path, tmp_path: Path, share: float):
    """Wherever: its manifest comes last."""
    data = source.read_bytes()
    end = data.rindex(b"}")  # what follows is padding
    source.write_bytes(data[: int(end * share)])
    with pytest.raises(InvalidRequest, match="damaged, or no backup"):
        extract(str(source), tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"a/one": b"1" * 4999 + b"2"},
        {"a/one": b""},
        {"a/three": b"was never there"},
        {MANIFEST: b"{}"},
        {MANIFEST: b"no json"},
        {"../escape": b"out of the folder"},
        {"/escape": b"out of the folder"},
        {"behind": b"the manifest"},
    ],
    ids=str,
)
def test_one_changed_byte_is_enough_to_refuse(source: Path, tmp_path: Path, change: dict[str, bytes]):
    """Content, size, names, members that were put in; and no name leads out of the folder."""
    with pytest.raises(InvalidRequest, match="damaged, or no backup"):
        extract(str(rewritten(source, change)), tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "escape").exists()


def test_a_link_is_no_file(source: Path, tmp_path: Path):
    """An archive that holds one was not made here."""
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        entry = tarfile.TarInfo("a")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(InvalidRequest, match="a member that cannot be"):
        extract(str(tmp_path / "links.tar"), tmp_path / "out")


def test_a_newer_format_is_refused_by_its_number(source: Path, tmp_path: Path):
    """Which comes before anything else that may be new."""
    newer = rewritten(source, {MANIFEST: json.dumps({"format": 7, "new": "things"}).encode()})
    with pytest.raises(InvalidRequest, match="format 7, this release reads up to 1"):
        extract(str(newer), tmp_path / "out")


def test_an_archive_that_fails_half_way_does_not_appear(tmp_path: Path):
    """Nor does a part of it stay."""
    (tmp_path / "one").write_text("1" * 5000)

    def fail() -> None:
        with writing(str(tmp_path / "new" / "b.tar")) as archive:
            archive.add("one", tmp_path / "one")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable), writing(str(tmp_path / "file" / "b.tar")):
        pass


def test_an_archive_is_never_written_over(source: Path):
    """The name is taken."""
    with pytest.raises(Conflict, match="is there already"), writing(str(source)):
        pass


def test_urls_do_as_well(source: Path, tmp_path: Path):
    """Whatever fsspec reaches."""
    fs = fsspec.filesystem("memory")
    with writing("memory://bucket/b.tar") as archive:
        archive.add("one", tmp_path / "one")
        archive.close(FACTS)
    assert [Path(file).name for file in fs.ls("/bucket", detail=False)] == ["b.tar"]
    assert extract("memory://bucket/b.tar", tmp_path / "out").facts == FACTS
    with pytest.raises(InvalidRequest, match="There is nothing at memory://bucket/c"):
        extract("memory://bucket/c.tar", tmp_path / "none")


def test_the_newest_are_kept(tmp_path: Path):
    """By the time in their names; other files are left alone."""
    names = [Path(new_name(str(tmp_path), datetime(2026, 1, day, tzinfo=UTC))).name for day in (1, 2, 3)]
    for name in (*names, "holiday.tar", "mindfu-notes.txt"):
        (tmp_path / name).touch()
    assert names[0] == "mindfu-20260101T000000Z.tar"
    assert [Path(gone).name for gone in prune(str(tmp_path), 2)] == names[:1]
    assert prune(str(tmp_path), 2) == ()
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "holiday.tar", "mindfu-notes.txt"}


def test_a_file_is_named_and_a_folder_gets_one():
    """What ends with .tar is a file."""
    assert new_name("s3://b/x/", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "s3://b/x/mindfu-20260102T030405Z.tar"
    assert new_name("/b/mine.tar", datetime.now(UTC)) == "/b/mine.tar"
