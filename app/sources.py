"""Where documents come from: files, folders, patterns, web pages, object stores. Finding them, and reading their bytes.

A source is known by its URI, which is what a document remembers of where it came from:
    file://HOST/path/of/it      with the machine's name: the same path elsewhere is another file
    https://…                   a web page or a file on the web
    s3://… gs://… memory://…    whatever fsspec has a driver for

In folders hidden files are left out, links to folders are not followed (there may be loops), and what is not a kind of
file that is read here is skipped and not a failure. What is named itself is taken, or it is a failure.
"""

import glob
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from app.errors import InvalidRequest, MindFuError, TooLarge, UnreadableDocument
from app.fetching import fetch
from app.media import FORMATS
from app.reading_text import file_name

PIECE = 2**20
WEB = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Source:
    """One document to be. version: changes with its content, None where nobody can tell without reading; size: bytes.
    named: by the user, and not found in a folder.
    """

    uri: str
    size: int | None = None
    version: str | None = None
    named: bool = True

    @property
    def name(self) -> str:
        """Of the file."""
        return file_name(unquote(urlsplit(self.uri).path.rstrip("/"))) or urlsplit(self.uri).netloc


class Content(NamedTuple):
    """A source, read. name, media_type: as `Reader.read` takes them."""

    data: bytes
    name: str
    media_type: str | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """What stays out on purpose. why: to follow the URI and a colon."""

    uri: str
    why: str


@dataclass(frozen=True, slots=True)
class Unfound:
    """What could not be looked at. Whatever was known below it may still be there."""

    uri: str
    error: MindFuError


Found = Source | Skipped | Unfound


def find(places: Iterable[str]) -> Iterator[Found]:
    """What there is at paths, patterns and URLs, each once, in a stable order. Nothing is read but folders."""
    seen = set[str]()
    for place in places:
        for found in _at(place):
            if found.uri not in seen:
                seen.add(found.uri)
                yield found


def roots(places: Iterable[str]) -> tuple[str, ...]:
    """The URIs of the folders among the places: what is missing below them is gone."""
    found = []
    for place in places:
        if "://" not in place:
            if Path(place).is_dir():
                found.append(_file_uri(Path(os.path.abspath(place))) + "/")  # noqa: PTH100 – must not resolve links
        elif not place.startswith(WEB):
            with suppress(MindFuError, OSError):
                filesystem, path = _remote(place)
                if filesystem.isdir(path):
                    found.append(filesystem.unstrip_protocol(path).rstrip("/") + "/")
    return tuple(found)


def read(source: Source, *, max_bytes: int, private: bool = False) -> Content:
    """What it holds. private: web pages may lie at private addresses. Raises TooLarge, UnreadableDocument."""
    if source.size is not None and source.size > max_bytes:
        raise TooLarge(f"'{source.name}'", source.size, max_bytes, "bytes", "documents.max_bytes")
    if source.uri.startswith(WEB):
        return _page(source, *fetch(source.uri, max_bytes=max_bytes, private=private))
    try:
        if source.uri.startswith("file://"):
            with _path(source.uri).open("rb") as file:
                data = file.read(max_bytes + 1)
        else:
            filesystem, path = _remote(source.uri)
            with filesystem.open(path, "rb") as file:
                data = file.read(max_bytes + 1)
    except OSError as error:
        raise UnreadableDocument(source.name, _reason(error)) from error
    if len(data) > max_bytes:  # it has grown
        raise TooLarge(f"'{source.name}'", len(data), max_bytes, "bytes", "documents.max_bytes")
    return Content(data, source.name, None)


def _page(source: Source, data: bytes, media_type: str | None) -> Content:
    """A page that a program made is HTML, and no PHP, whatever its URL ends with."""
    html = (media_type or "").lower().startswith("text/html")
    return Content(data, f"{Path(source.name).stem}.html" if html else source.name, media_type)


def _at(place: str) -> Iterator[Found]:
    if place.startswith(WEB):
        yield Source(place)
    elif "://" in place and not place.startswith("file://"):
        yield from _in_store(place)
    else:
        yield from _on_disk(str(_path(place)) if place.startswith("file://") else place)


def _on_disk(place: str) -> Iterator[Found]:
    path = Path(os.path.abspath(Path(place).expanduser()))  # noqa: PTH100 – `resolve` would follow links
    if path.exists() or path.is_symlink():
        yield from _walk(path, named=True)
        return
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(place) else []  # noqa: PTH207
    if not matches:
        reason = "nothing matches this pattern" if glob.has_magic(place) else "there is no such file or folder"
        yield Unfound(_file_uri(path), InvalidRequest(reason, "path"))
    for match in matches:
        if not Path(match).is_dir():
            yield from _walk(Path(match), named=False)


def _walk(path: Path, *, named: bool) -> Iterator[Found]:
    """A file, or what a folder holds, by name."""
    uri = _file_uri(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            if path.is_symlink() and not named:
                yield Skipped(uri, "it is a link to a folder")
                return
            children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
        else:
            yield _judged(Source(uri, status.st_size, str(status.st_mtime_ns), named), status.st_mode)
            return
    except OSError as error:
        yield Unfound(uri, UnreadableDocument(path.name, _reason(error)))
        return
    for child in children:
        yield from _walk(child, named=False)


def _judged(source: Source, mode: int = stat.S_IFREG) -> Found:
    """The source, unless it was only found, and by name or size is nothing to read."""
    if not stat.S_ISREG(mode):
        return Skipped(source.uri, "it is no regular file")
    if source.named:
        return source
    extension = Path(source.name).suffix.lstrip(".").lower()
    if extension.isalnum() and extension not in FORMATS:
        return Skipped(source.uri, f"a .{extension} file is not read here")
    return Skipped(source.uri, "it is empty") if source.size == 0 else source


def _in_store(place: str) -> Iterator[Found]:
    try:
        filesystem, path = _remote(place)
        if glob.has_magic(path):
            entries, named = filesystem.glob(path, detail=True), False
        else:
            named = not filesystem.isdir(path)
            entries = {path: filesystem.info(path)} if named else filesystem.find(path, detail=True)
    except MindFuError as error:
        yield Unfound(place, error)
        return
    except Exception as error:  # noqa: BLE001 – drivers raise whatever their libraries do
        yield Unfound(place, UnreadableDocument(place, _reason(error)))
        return
    if not entries:
        yield Unfound(place, InvalidRequest("nothing is there", "path"))
    for key, entry in sorted(entries.items()):
        hidden = any(part.startswith(".") for part in key.removeprefix(path).split("/"))
        if entry["type"] == "file" and (named or not hidden):
            version = next(
                (str(entry[name]) for name in ("ETag", "etag", "mtime", "LastModified") if name in entry), None
            )
            yield _judged(Source(filesystem.unstrip_protocol(key), entry["size"], version, named))


def _remote(place: str) -> tuple[Any, str]:
    """The driver and the path in it. Raises InvalidRequest where there is none."""
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise InvalidRequest(f"'{place}' cannot be opened: {error}", "path") from error
    return filesystem, path


def _file_uri(path: Path) -> str:
    return f"file://{socket.gethostname()}{quote(str(path), errors='surrogateescape')}"


def _path(uri: str) -> Path:
    """Of a file's URI. Names of files are bytes, and not always UTF-8."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
