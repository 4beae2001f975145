"""What there is at a path, a pattern or a URL; a folder may hold anything."""

import os
import socket
from pathlib import Path

import fsspec
import pytest

from app.errors import TooLarge, UnreadableDocument
from app.sources import Skipped, Source, Unfound, find, read, roots

HOST = socket.gethostname()


def names(*places: object) -> list[str]:
    """Of what would be read."""
    return [found.name for found in find(map(str, places)) if isinstance(found, Source)]


def test_a_folder_is_walked_in_order_and_hidden_files_are_left_out(tmp_path):
    """Each file once, with its size and a version."""
    for name in ("b.md", "a.py", "sub/c.rst", ".git/config", "sub/.hidden.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert names(tmp_path) == ["a.py", "b.md", "c.rst"]
    assert names(tmp_path, tmp_path / "b.md", f"{tmp_path}/sub") == ["a.py", "b.md", "c.rst"]
    first = next(iter(find([str(tmp_path)])))
    assert isinstance(first, Source)
    assert first.uri == f"file://{HOST}{tmp_path}/a.py"
    assert (first.size, first.version, first.named) == (4, str((tmp_path / "a.py").stat().st_mtime_ns), False)


def test_loops_of_links_and_special_files_are_no_trap(tmp_path):
    """Links to files are followed, links to folders are not, nobody waits for a pipe."""
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.md").symlink_to(tmp_path / "a.md")
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == ["a.md", "link.md"]
    skipped = {found.uri.rpartition("/")[2]: found.why for found in find([str(tmp_path)]) if isinstance(found, Skipped)}
    assert skipped == {"loop": "it is a link to a folder", "pipe": "it is no regular file"}


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    """It is no reason to stop."""
    (tmp_path / "dangling.md").symlink_to(tmp_path / "gone")
    (tmp_path / "a.md").write_text("text")
    found = list(find([str(tmp_path)]))
    assert [type(one) for one in found] == [Source, Unfound]
    assert "No such file" in str(found[1].error)


def test_what_is_found_must_be_of_a_kind_that_is_read(tmp_path):
    """By its name: nobody opens gigabytes to see that they are a disk image. What is named is taken at its word."""
    for name in ("x.iso", "empty.md", "LICENSE"):
        (tmp_path / name).write_text("" if "empty" in name else "text")
    assert names(tmp_path) == ["LICENSE"]
    assert [one.why for one in find([str(tmp_path)]) if isinstance(one, Skipped)] == [
        "it is empty",
        "a .iso file is not read here",
    ]
    assert names(tmp_path / "x.iso", tmp_path / "empty.md") == ["x.iso", "empty.md"]


def test_patterns_find_files(tmp_path):
    """With ** for folders; nothing found is said."""
    (tmp_path / "sub").mkdir()
    for name in ("a.md", "b.txt", "sub/c.md"):
        (tmp_path / name).write_text("text")
    assert names(f"{tmp_path}/**/*.md") == ["a.md", "c.md"]
    (unfound,) = find([f"{tmp_path}/*.pdf"])
    assert isinstance(unfound, Unfound)
    assert str(unfound.error) == "nothing matches this pattern"
    (unfound,) = find([str(tmp_path / "no.md")])
    assert str(unfound.error) == "there is no such file or folder"


def test_odd_names_survive(tmp_path):
    """Spaces, percent signs, brackets, and bytes that are no UTF-8."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff a%20b [1].md")
    Path(odd).write_text("odd")
    (source,) = find([str(tmp_path)])
    assert isinstance(source, Source)
    source.uri.encode()  # it can be kept anywhere
    assert read(source, max_bytes=10).data == b"odd"
    assert names(odd) == [source.name]


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    """Both numbers are told; nor is one that has grown since it was found."""
    (tmp_path / "a.md").write_text("12345")
    (source,) = find([str(tmp_path)])
    assert isinstance(source, Source)
    with pytest.raises(TooLarge, match=r"'a\.md' has 5 bytes, the limit is 4"):
        read(source, max_bytes=4)
    (tmp_path / "a.md").write_text("123456789")
    with pytest.raises(TooLarge):
        read(source, max_bytes=6)
    (tmp_path / "a.md").unlink()
    with pytest.raises(UnreadableDocument, match="No such file"):
        read(source, max_bytes=6)


@pytest.fixture
def store():
    """An object store in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({"/bucket/a.md": b"alpha", "/bucket/sub/b.txt": b"beta", "/bucket/x.bin": b"0"})
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def test_object_stores_are_read_through_their_drivers(store):
    """A folder, a pattern, a file; the bytes come with the same limits."""
    assert names("memory://bucket") == ["a.md", "b.txt"]
    assert names("memory://bucket/**/*.txt") == ["b.txt"]
    assert names("memory://bucket/x.bin") == ["x.bin"]
    source = next(found for found in find(["memory://bucket"]) if isinstance(found, Source))
    assert read(source, max_bytes=5).data == b"alpha"
    with pytest.raises(TooLarge):
        read(source, max_bytes=4)
    assert roots(["memory://bucket", "memory://bucket/a.md"]) == ("memory:///bucket/",)
    assert source.uri.startswith("memory:///bucket/")


def test_a_store_without_a_driver_is_named():
    """With what is missing."""
    (unfound,) = find(["nosuch://bucket/x"])
    assert isinstance(unfound, Unfound)
    assert "nosuch" in str(unfound.error)


def test_only_folders_are_watched_for_what_is_gone(tmp_path):
    """A file that was named, or a page, is not missed."""
    (tmp_path / "a.md").write_text("text")
    places = [str(tmp_path), str(tmp_path / "a.md"), f"{tmp_path}/*.md", "https://example.org/x"]
    assert roots(places) == (f"file://{HOST}{tmp_path}/",)


def test_a_page_is_taken_as_it_is_named():
    """Whether it can be fetched shows when it is read."""
    (page,) = find(["https://example.org/docs/"])
    assert page == Source("https://example.org/docs/")
    assert isinstance(page, Source)
    assert page.name == "docs"
