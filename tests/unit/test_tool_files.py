"""What the tools on files do, where they may."""

from pathlib import Path
from typing import Any

import pytest

from app.tools import files
from app.tools.context import Context
from app.tools.failures import ToolFailed
from app.tools.network import Network
from app.tools.sandbox import Sandbox


async def find(*_: object) -> Any:
    raise AssertionError


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workspace with a few files."""
    work = tmp_path.resolve()
    (work / "notes.txt").write_text("one\ntwo\nthree\n")
    (work / ".hidden").write_text("")
    (work / "sub").mkdir()
    (work / "sub" / "deep.py").write_text("x = 1\nprint('two')\n")
    return work


@pytest.fixture
def context(work: Path) -> Context:
    return Context(Sandbox([work]), Network(), find)


def test_a_file_is_read_whole_or_in_part(context, work):
    """With the number of its lines."""
    path = f"{work}/notes.txt"
    assert files.read_file(context, path) == {"content": "one\ntwo\nthree\n", "lines": 3}
    assert files.read_file(context, path, first_line=2, max_lines=1) == {"content": "two\n", "lines": 3}
    assert files.read_file(context, path, first_line=9)["content"] == ""


def test_a_file_is_written_whole(context, work):
    """A new one, or over one that exists, which keeps its permissions; nothing is left beside it."""
    path = work / "new.txt"
    assert files.write_file(context, str(path), ["ä", "b"]) == {"status": "success", "bytes_written": 5}
    path.chmod(0o600)
    files.write_file(context, str(path), [])
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("", 0o600)
    assert sorted(path.name for path in work.iterdir()) == [".hidden", "new.txt", "notes.txt", "sub"]
    with pytest.raises(ToolFailed, match="there is no such file or folder"):
        files.write_file(context, f"{work}/nowhere/new.txt", ["x"])
    with pytest.raises(ToolFailed, match="is a folder"):
        files.write_file(context, f"{work}/sub", ["x"])


def test_folders_are_listed_and_described(context, work):
    """Hidden names only on request."""
    told = files.list_contents(context, str(work))
    assert told["items"] == [{"name": "notes.txt", "type": "file", "size": 14}, {"name": "sub", "type": "directory"}]
    assert files.list_contents(context, str(work), show_hidden=True)["total_items"] == 3
    info = files.get_file_info(context, f"{work}/notes.txt")
    assert (info["type"], info["size"], info["permissions"][0]) == ("file", 14, "-")
    assert info["modified"].endswith("+00:00")
    assert files.get_file_info(context, f"{work}/sub")["type"] == "directory"
    assert files.get_current_directory(context)["path"] == str(work)


def test_files_are_found_by_name_and_by_content(context, work):
    """As many as were asked for; what was left out is said."""
    assert files.search_files(context, str(work), "*.py") == {"files": [f"{work}/sub/deep.py"], "count": 1}
    assert files.search_files(context, str(work), "*.py", recursive=False)["count"] == 0
    assert files.search_files(context, str(work), "*", max_results=2)["truncated"]
    found = files.find_in_files(context, str(work), "two")
    assert [(match["line"], match["text"]) for match in found["matches"]] == [(2, "two"), (2, "print('two')")]
    assert files.find_in_files(context, str(work), "two", file_pattern="*.py")["count"] == 1
    assert files.find_in_files(context, str(work), "two", max_results=1)["truncated"]


def test_the_size_of_a_folder_is_added_up(context, work):
    """To a depth: 14 bytes here, 19 one folder below."""
    assert files.calculate_directory_size(context, str(work)) == {"size_bytes": 33, "size_human": "33 B"}
    assert files.calculate_directory_size(context, str(work), max_depth=0)["size_bytes"] == 14
    with (work / "large").open("wb") as file:
        file.truncate(3 * 2**20)
    assert files.calculate_directory_size(context, str(work))["size_human"] == "3.0 MB"


def test_folders_are_made_with_and_without_those_above(context, work):
    """Where they are missing."""
    with pytest.raises(ToolFailed, match="no such file or folder"):
        files.create_directory(context, f"{work}/a/b")
    assert files.create_directory(context, f"{work}/a/b/c", parents=True)["path"] == f"{work}/a/b/c"
    with pytest.raises(ToolFailed, match="exists already"):
        files.create_directory(context, f"{work}/a/b/c")


def test_files_and_folders_are_moved(context, work):
    """Over a file only on request, over a folder never, and no folder into itself."""
    files.move_file(context, f"{work}/sub", f"{work}/moved")
    assert (work / "moved" / "deep.py").exists()
    with pytest.raises(ToolFailed, match="exists already"):
        files.move_file(context, f"{work}/notes.txt", f"{work}/moved/deep.py")
    with pytest.raises(ToolFailed, match="is a folder"):
        files.move_file(context, f"{work}/notes.txt", f"{work}/moved", overwrite=True)
    files.move_file(context, f"{work}/notes.txt", f"{work}/moved/deep.py", overwrite=True)
    assert (work / "moved" / "deep.py").read_text().startswith("one")
    with pytest.raises(ToolFailed):
        files.move_file(context, f"{work}/moved", f"{work}/moved/into")
    assert [path.name for path in (work / "moved").iterdir()] == ["deep.py"]


def test_files_are_copied(context, work):
    """Over one that exists only on request."""
    files.copy_file(context, f"{work}/notes.txt", f"{work}/copy.txt")
    assert (work / "copy.txt").read_text() == (work / "notes.txt").read_text()
    with pytest.raises(ToolFailed, match="exists already"):
        files.copy_file(context, f"{work}/sub/deep.py", f"{work}/copy.txt")
    files.copy_file(context, f"{work}/sub/deep.py", f"{work}/copy.txt", overwrite=True)
    assert (work / "copy.txt").read_text().startswith("x")


def test_files_and_folders_are_deleted(context, work):
    """A folder that holds something only on request."""
    files.delete_file(context, f"{work}/notes.txt")
    with pytest.raises(ToolFailed, match="the folder is not empty"):
        files.delete_file(context, f"{work}/sub")
    files.delete_file(context, f"{work}/sub", recursive=True)
    assert [path.name for path in work.iterdir()] == [".hidden"]
    with pytest.raises(ToolFailed, match="no such file or folder"):
        files.delete_file(context, f"{work}/sub")
