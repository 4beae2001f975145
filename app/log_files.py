"""Find logs of conversations in a file, a folder, or wherever fsspec reaches: s3://bucket/prefix, https://…, zip://….

Read is app/logs.py's business; a folder is a session of Mistral Vibe where it holds meta.json, and everything else goes
by its name: .jsonl and .ndjson hold a record in each line, .json one or a list, each also as .gz.
"""

import json
import posixpath
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import fsspec

from app.errors import InvalidRequest
from app.logs import Session, Unreadable, record, vibe, vibe_chunks, vibe_generation, vibe_messages
from app.turns import Conversation

LINES, WHOLE = (".jsonl", ".ndjson"), (".json",)
META, MESSAGES, CURRENT = "meta.json", "messages.jsonl", "CURRENT"


class Found(NamedTuple):
    """Something that may be a conversation. where: file and line; modified: of the file, None where nobody knows."""

    where: str
    what: Session | Conversation | Unreadable
    modified: datetime | None


def find(url: str) -> Iterator[Found]:
    """All that is there, in the order of names. Raises InvalidRequest for a place that cannot be looked into."""
    fs, root = place(url)
    if not fs.exists(root):
        raise InvalidRequest(f"There is nothing at {url}.", "path")
    files = sorted(fs.find(root)) if fs.isdir(root) else [root]
    sessions = {posixpath.dirname(file) for file in files if posixpath.basename(file) == META}
    for file in files:
        above = next((folder for folder in _above(file) if folder in sessions), None)
        if above is None:
            yield from _records(fs, file)
        elif file == posixpath.join(above, META):
            yield Found(above, _reading(_vibe, fs, above), _modified(fs, file))


def place(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path there. Raises InvalidRequest: no such kind, or not installed."""
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        remedy = " (`uv pip install s3fs`)" if url.startswith("s3:") else ""
        raise InvalidRequest(f"{url} cannot be reached: {error}{remedy}.", "path") from error
    return fs, root


def _records(fs: Any, file: str) -> Iterator[Found]:
    modified, name = _modified(fs, file), file.removesuffix(".gz")
    if name.endswith(LINES):
        try:
            with fs.open(file, "rb", compression="infer") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield Found(f"{file}:{number}", _reading(_record, line), modified)
        except OSError as error:
            yield Found(file, Unreadable(f"it cannot be read: {error}"), modified)
    elif name.endswith(WHOLE):
        read = _reading(_whole, fs, file)
        listed = isinstance(read, list)
        for number, one in enumerate(read if isinstance(read, list) else [read], 1):
            where = f"{file}:{number}" if listed else file
            yield Found(where, one if isinstance(one, Unreadable) else _reading(record, one), modified)
    else:
        yield Found(file, Unreadable(f"its name ends in none of {', '.join((*LINES, *WHOLE))}"), modified)


def _vibe(fs: Any, folder: str) -> Session:
    meta = _text(fs, posixpath.join(folder, META))
    if fs.exists(posixpath.join(folder, MESSAGES)):
        return vibe(meta, _text(fs, posixpath.join(folder, MESSAGES)).split("\n"))
    if not fs.exists(posixpath.join(folder, CURRENT)):
        raise Unreadable(f"a folder with {META}, but neither {MESSAGES} nor {CURRENT}")
    manifest = _text(fs, posixpath.join(folder, vibe_generation(_text(fs, posixpath.join(folder, CURRENT)))))
    chunks = (_text(fs, posixpath.join(folder, chunk)) for chunk in vibe_chunks(manifest))
    return vibe(meta, [message for chunk in chunks for message in vibe_messages(chunk)])


def _record(line: bytes) -> Session | Conversation:
    return record(_parsed(line))


def _whole(fs: Any, file: str) -> Any:
    with fs.open(file, "rb", compression="infer") as stream:
        return _parsed(stream.read())


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is no JSON: {error}") from error


def _reading(read: Any, *arguments: Any) -> Any:
    """What a reader reads, or why it does not."""
    try:
        return read(*arguments)
    except Unreadable as error:
        return error
    except (OSError, UnicodeDecodeError) as error:
        return Unreadable(f"it cannot be read: {error}")


def _text(fs: Any, file: str) -> str:
    text: str = fs.cat_file(file).decode("utf-8-sig")
    return text


def _above(file: str) -> Iterator[str]:
    """The folders that a file is in, the nearest first."""
    folder = posixpath.dirname(file)
    while folder and folder != posixpath.dirname(folder):
        yield folder
        folder = posixpath.dirname(folder)
    yield folder


def _modified(fs: Any, file: str) -> datetime | None:
    try:
        when = fs.modified(file)
    except (NotImplementedError, OSError, KeyError, TypeError):  # file systems that keep no times raise any of these
        return None
    if not isinstance(when, datetime):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
