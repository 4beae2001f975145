"""The tools that work on files, all of them in the caller's sandbox. Text files only are read and written."""

import os
import secrets
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from app.tools.context import Context, Json
from app.tools.failures import ToolFailed
from app.tools.registry import reads
from app.tools.sandbox import Held

MOST_ENTRIES = 20_000  # files and folders that one call looks at
MOST_DEPTH = 64
MOST_LINE = 200  # characters of a line that matched
PIECE = 2**16  # bytes
UNITS = ("B", "KB", "MB", "GB", "TB")

Path = Annotated[str, Field(description="An absolute path.")]
Pattern = Annotated[str, Field(max_length=200, description="Like '*.txt': * is anything, ? one character.")]
Most = Annotated[int, Field(ge=1, le=1000)]


@reads
def read_file(
    context: Context, path: Path, first_line: Annotated[int, Field(ge=1)] = 1, max_lines: Most = 1000
) -> Json:
    """Read a text file. Tells `lines`, how many it has; read a long one in parts by `first_line` and `max_lines`."""
    with context.sandbox.file(path, context.max_file_bytes) as held:
        lines = _text(held, context.max_file_bytes).splitlines(keepends=True)
    return {"content": "".join(lines[first_line - 1 :][:max_lines]), "lines": len(lines)}


def write_file(context: Context, path: Path, lines: Annotated[list[str], Field(max_length=100_000)]) -> Json:
    """Write a text file, line by line; one that exists is replaced. Its folder must exist."""
    data = "".join(f"{line}\n" for line in lines).encode()
    if b"\0" in data:
        raise ToolFailed("Only text is written, and text holds no zero character.")
    if len(data) > context.max_file_bytes:
        raise ToolFailed(f"That is {len(data)} bytes, at most {context.max_file_bytes} are allowed.")
    with context.sandbox.parent(path) as (folder, name):
        _require_file(folder, name)
        _put(folder, name, data, overwrite=True)
    return {"status": "success", "bytes_written": len(data)}


@reads
def list_contents(context: Context, path: Path, show_hidden: bool = False) -> Json:
    """List what is in a folder, with type and size in bytes."""
    with context.sandbox.folder(path) as folder:
        names = [name for name in folder.names() if show_hidden or not name.startswith(".")]
        items = [item for name in names[:1000] if (item := _item(folder, name))]
    return {"items": items, "total_items": len(names)}


@reads
def search_files(
    context: Context, path: Path, pattern: Pattern, recursive: bool = True, max_results: Most = 100
) -> Json:
    """Find files by their names."""
    found, walk = [], _Walk(context, recursive=recursive)
    with context.sandbox.folder(path) as folder:
        for parent, name, status in walk.entries(folder):
            if not stat.S_ISDIR(status.st_mode) and fnmatchcase(name, pattern):
                found.append(f"{parent.path}/{name}")
                if len(found) == max_results:
                    walk.complete = False
                    break
    return {"files": found, "count": len(found)} | walk.told()


@reads
def calculate_directory_size(
    context: Context, path: Path, max_depth: Annotated[int, Field(ge=0, le=MOST_DEPTH)] = MOST_DEPTH
) -> Json:
    """Add up the sizes of the files in a folder. `max_depth` 0 is the folder's own files."""
    size, walk = 0, _Walk(context, depth=max_depth)
    with context.sandbox.folder(path) as folder:
        for _, _, status in walk.entries(folder):
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return {"size_bytes": size, "size_human": _human(size)} | walk.told()


@reads
def get_file_info(context: Context, path: Path) -> Json:
    """Tell size in bytes, times and permissions of a file or folder."""
    with context.sandbox.open(path) as held:
        status = held.stat
    born = getattr(status, "st_birthtime", status.st_ctime)
    return {
        "type": "directory" if stat.S_ISDIR(status.st_mode) else "file",
        "size": status.st_size,
        "created": _time(born),
        "modified": _time(status.st_mtime),
        "permissions": stat.filemode(status.st_mode),
    }


def create_directory(context: Context, path: Path, parents: bool = False) -> Json:
    """Make a folder; `parents` makes those above it, too."""
    missing = _missing(context, path) if parents else []
    for each in (*missing, path):
        with context.sandbox.parent(each) as (folder, name):
            os.mkdir(name, 0o755, dir_fd=folder.fd)
    return {"status": "success", "path": path}


def move_file(context: Context, source: Path, dest: Path, overwrite: bool = False) -> Json:
    """Move or rename a file or folder. What stands at `dest` is replaced only with `overwrite`, and if it is a file."""
    with context.sandbox.parent(source) as (old, name), context.sandbox.parent(dest) as (new, new_name):
        with old.step(name) as held:
            context.sandbox.movable(held)
            is_folder = held.is_folder
        there = _require_file(new, new_name)
        if there and not overwrite:
            raise ToolFailed(f"'{dest}' exists already. Set overwrite to replace it.")
        if there and is_folder:
            raise ToolFailed(f"'{dest}' is a file; a folder does not replace it.")
        if overwrite:
            os.rename(name, new_name, src_dir_fd=old.fd, dst_dir_fd=new.fd)
        elif is_folder:
            os.mkdir(new_name, dir_fd=new.fd)  # fails where something came to be there; an empty folder is replaced
            try:
                os.rename(name, new_name, src_dir_fd=old.fd, dst_dir_fd=new.fd)
            except OSError:
                os.rmdir(new_name, dir_fd=new.fd)
                raise
        else:
            os.link(name, new_name, src_dir_fd=old.fd, dst_dir_fd=new.fd, follow_symlinks=False)  # likewise
            os.unlink(name, dir_fd=old.fd)
    return {"status": "success"}


def copy_file(context: Context, source: Path, dest: Path, overwrite: bool = False) -> Json:
    """Copy a file. What stands at `dest` is replaced only with `overwrite`."""
    with context.sandbox.file(source, context.max_file_bytes) as held:
        data, mode = _bytes(held, context.max_file_bytes), stat.S_IMODE(held.stat.st_mode) & 0o777
    with context.sandbox.parent(dest) as (folder, name):
        if _require_file(folder, name) and not overwrite:
            raise ToolFailed(f"'{dest}' exists already. Set overwrite to replace it.")
        _put(folder, name, data, overwrite=overwrite, mode=mode)
    return {"status": "success"}


def delete_file(context: Context, path: Path, recursive: bool = False) -> Json:
    """Delete a file or an empty folder; `recursive` deletes a folder with all that is in it."""
    with context.sandbox.parent(path) as (parent, name):
        with parent.step(name) as held:
            context.sandbox.movable(held)
            if recursive and held.is_folder:
                _require_few(context, held)
                _empty(held, MOST_DEPTH)
        if held.is_folder:
            os.rmdir(name, dir_fd=parent.fd)
        else:
            os.unlink(name, dir_fd=parent.fd)
    return {"status": "success"}


@reads
def get_current_directory(context: Context) -> Json:
    """Tell the folder to work in, and all that are allowed."""
    return {"path": str(context.sandbox.roots[0]), "allowed": [str(root) for root in context.sandbox.roots]}


@reads
def find_in_files(
    context: Context,
    path: Path,
    search_text: Annotated[str, Field(min_length=1, max_length=1000)],
    file_pattern: Pattern = "*",
    max_results: Most = 100,
) -> Json:
    """Find the lines that hold a text, in all text files beneath a folder. Upper and lower case are told apart."""
    matches: list[Json] = []
    walk = _Walk(context)
    with context.sandbox.folder(path) as folder:
        for parent, name, status in walk.entries(folder):
            if not stat.S_ISREG(status.st_mode) or not fnmatchcase(name, file_pattern):
                continue
            for number, line in _lines(parent, name, context.max_file_bytes, walk):
                if search_text in line:
                    matches.append({"file": f"{parent.path}/{name}", "line": number, "text": line.strip()[:MOST_LINE]})
                    if len(matches) == max_results:
                        walk.complete = False
                        return {"matches": matches, "count": len(matches)} | walk.told()
    return {"matches": matches, "count": len(matches)} | walk.told()


class _Walk:
    """A look at all that is in a folder, within bounds. complete: nothing was left out. skipped: files not read."""

    def __init__(self, context: Context, *, recursive: bool = True, depth: int = MOST_DEPTH) -> None:
        self._depth, self._left = depth if recursive else 0, MOST_ENTRIES
        self._ends_at = time.monotonic() + context.timeout_s * 0.8  # before the caller gives up
        self.complete, self.skipped = True, 0

    def entries(self, folder: Held) -> Iterator[tuple[Held, str, os.stat_result]]:
        """Every name with the folder that it is in, and its own status. Links are told and never followed."""
        return self._entries(folder, self._depth)

    def told(self) -> Json:
        """What the result must say of itself."""
        incomplete: Json = {} if self.complete else {"truncated": True}
        return incomplete | ({"files_not_read": self.skipped} if self.skipped else {})

    def _entries(self, folder: Held, depth: int) -> Iterator[tuple[Held, str, os.stat_result]]:
        for name in folder.names():
            if self._left == 0 or time.monotonic() > self._ends_at:
                self.complete = False
                return
            self._left -= 1
            status = folder.look(name)
            if status is None:
                continue
            yield folder, name, status
            if stat.S_ISDIR(status.st_mode) and depth:
                try:
                    with folder.step(name) as below:
                        yield from self._entries(below, depth - 1)
                except (OSError, ToolFailed):  # protected, not ours to read, or gone meanwhile
                    self.skipped += 1


def _lines(parent: Held, name: str, most: int, walk: _Walk) -> Iterator[tuple[int, str]]:
    try:
        with parent.step(name) as held:
            if held.stat.st_size > most:
                raise ToolFailed("too large")
            text = _text(held, most)
    except (OSError, ToolFailed):
        walk.skipped += 1
        return
    yield from enumerate(text.splitlines(), start=1)


def _text(held: Held, most: int) -> str:
    data = _bytes(held, most)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ToolFailed(f"'{held.path}' is no text in UTF-8.") from error
    if "\0" in text:
        raise ToolFailed(f"'{held.path}' is a binary file; only text files are read.")
    return text


def _bytes(held: Held, most: int) -> bytes:
    """All of a file that was opened, though it may grow while it is read."""
    pieces, size = [], 0
    while piece := os.read(held.fd, PIECE):
        size += len(piece)
        if size > most:
            raise ToolFailed(f"'{held.path}' has more than {most} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


def _put(folder: Held, name: str, data: bytes, *, overwrite: bool, mode: int = 0o644) -> None:
    """Write a file under another name, and give it its own: it is whole or not there, and no link is followed."""
    there = folder.look(name)
    if there is not None:
        mode = stat.S_IMODE(there.st_mode) & 0o777
    own = f".mindfu-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(own, flags, mode, dir_fd=folder.fd), "wb") as file:
        try:
            file.write(data)
            file.flush()
            if overwrite:
                os.rename(own, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            else:
                os.link(own, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
                os.unlink(own, dir_fd=folder.fd)
        except BaseException:
            os.unlink(own, dir_fd=folder.fd)
            raise


def _require_file(folder: Held, name: str) -> bool:
    """Whether there is a file of that name. Raises ToolFailed where there is something else, or it is protected."""
    status = folder.look(name)
    if status is None:
        return False
    if stat.S_ISDIR(status.st_mode):
        raise ToolFailed(f"'{folder.path}/{name}' is a folder.")
    with folder.step(name):
        return True


def _missing(context: Context, path: str) -> list[str]:
    """The folders above a path that are not there, the highest first. Raises ToolFailed for a path that is no good."""
    missing: list[str] = []
    for above in PurePosixPath(path).parents:
        try:
            with context.sandbox.folder(str(above)):
                break
        except ToolFailed as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        missing.insert(0, str(above))
    return missing


def _require_few(context: Context, folder: Held) -> None:
    """That all of it can be seen, and is not too much. Raises ToolFailed before anything is gone."""
    walk = _Walk(context)
    for parent, _, status in walk.entries(folder):
        if stat.S_ISDIR(status.st_mode) and parent.path.count("/") - folder.path.count("/") >= MOST_DEPTH - 1:
            raise ToolFailed(f"'{folder.path}' is nested deeper than {MOST_DEPTH} folders.")
    if not walk.complete:
        raise ToolFailed(f"'{folder.path}' holds more than {MOST_ENTRIES} files and folders. Delete parts of it.")
    if walk.skipped:
        raise ToolFailed(f"'{folder.path}' holds folders that may not be touched.")


def _empty(folder: Held, depth: int) -> None:
    for name in folder.names():
        status = folder.look(name)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=folder.fd)
            continue
        if not depth:
            raise ToolFailed(f"'{folder.path}' is nested too deep.")
        with folder.step(name) as below:
            _empty(below, depth - 1)
        os.rmdir(name, dir_fd=folder.fd)


def _item(folder: Held, name: str) -> Json | None:
    status = folder.look(name)
    if status is None:
        return None
    kinds: dict[int, str] = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
    item: dict[str, Any] = {"name": name, "type": kinds.get(stat.S_IFMT(status.st_mode), "other")}
    return item | ({"size": status.st_size} if stat.S_ISREG(status.st_mode) else {})


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _human(size: float) -> str:
    for unit in UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {UNITS[-1]}"
