"""A backup's file: a plain tar whose last member, `manifest.json`, has the SHA-256 of every other.

    with writing(target) as archive:            # a folder or a file, here or at s3://…; whole or not at all
        archive.add("postgres.dump", file)
        archive.close(Facts(...))
    manifest = extract(source, folder)          # checked to the last byte, or an error and nothing to go by

Being last, the manifest also says that nothing is missing: an archive that was cut off has none. Written and read as
streams. Knows nothing of what is in it.
"""

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol

from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, ValidationError

from app.errors import Conflict, InvalidRequest, Unavailable
from app.log_files import place
from app.messages import Strict

FORMAT: Literal[1] = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 2**30  # a larger one is none of ours
PREFIX, SUFFIX = "mindfu-", ".tar"
BLOCK = 2**20


class Member(Strict):
    """A file in the archive. sha256: hexadecimal; size: bytes."""

    sha256: str
    size: int


class Facts(Strict):
    """What an archive holds, and by which release it was made. migrations: SHA-256 by number, of the schema."""

    mindfu: str
    created_at: datetime
    migrations: dict[int, str]
    counts: dict[str, int] = Field(default_factory=dict)
    incomplete: tuple[str, ...] = ()  # what was not whole when it was copied
    left_out: tuple[str, ...] = ()  # what lies elsewhere and has a backup of its own


class Manifest(Strict):
    """The last member."""

    format: Literal[1] = FORMAT
    facts: Facts
    members: dict[str, Member]


class Archive:
    """One that is being written."""

    def __init__(self, out: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `close`
        self._members: dict[str, Member] = {}

    def add(self, name: str, file: Path) -> None:
        """Append a file under a relative name. Raises OSError where it cannot be read, or shrinks meanwhile."""
        assert name not in self._members
        with file.open("rb") as opened:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = file.stat().st_size, 0o600
            hashed = _Hashed(opened)
            self._tar.addfile(entry, hashed)
        self._members[name] = Member(sha256=hashed.digest.hexdigest(), size=entry.size)

    def close(self, facts: Facts) -> Manifest:
        """Append the manifest, and end."""
        manifest = Manifest(facts=facts, members=self._members)
        data = manifest.model_dump_json(indent=1).encode()
        entry = tarfile.TarInfo(MANIFEST)
        entry.size, entry.mode = len(data), 0o600
        self._tar.addfile(entry, io.BytesIO(data))
        self._tar.close()
        return manifest


@contextmanager
def writing(target: str) -> Iterator[Archive]:
    """A new archive at a path or URL. It appears there when the block ends, and never where it fails.

    Raises Conflict where there is a file already, Unavailable where the place cannot be written.
    """
    require_new(target)
    with _reaching(target):
        fs, path = place(target)
        part = f"{path}.part"
        if isinstance(fs, LocalFileSystem):  # elsewhere that would make buckets
            Path(part).parent.mkdir(parents=True, exist_ok=True)
            Path(part).touch(0o600)  # conversations and the keys' pepper are nobody else's to read
        try:
            with fs.open(part, "wb") as out:
                yield Archive(out)
            fs.mv(part, path)
        except BaseException:
            with suppress(OSError):
                fs.rm_file(part)
            raise


def require_new(target: str) -> None:
    """Raise Conflict where there is something, Unavailable or InvalidRequest where nothing could be."""
    with _reaching(target):
        fs, path = place(target)
        if fs.exists(path):
            raise Conflict(f"{target} is there already. Name another file, or a folder.")


def new_name(target: str, now: datetime) -> str:
    """The archive's file: the target itself where it ends with .tar, else a name by the time in that folder."""
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return target if target.endswith(SUFFIX) else f"{target.rstrip('/')}/{PREFIX}{stamp}{SUFFIX}"


def prune(folder: str, keep: int) -> tuple[str, ...]:
    """Delete all but the newest archives of a folder, by their names. Returns what is gone."""
    with _reaching(folder):
        fs, path = place(folder)
        found = sorted(
            file
            for file in fs.ls(path, detail=False)
            if posixpath.basename(file).startswith(PREFIX) and file.endswith(SUFFIX)
        )
        gone = tuple(found[: max(len(found) - keep, 0)])
        for file in gone:
            fs.rm_file(file)
        return gone


def extract(source: str, folder: Path) -> Manifest:
    """Unpack an archive, comparing every byte with its manifest.

    Raises InvalidRequest where it is no archive, was cut off or changed, or is of a newer format.
    """
    with _reaching(source):
        fs, path = place(source)
        if not fs.exists(path):
            message = f"There is nothing at {source}."
            raise InvalidRequest(message)
        with fs.open(path, "rb") as opened:
            try:
                found, manifest = _unpack(opened, folder)
            except (tarfile.TarError, EOFError) as error:
                raise _damaged(source, str(error) or "it ends early") from error
    if manifest is None:
        raise _damaged(source, "it ends early: its manifest, which comes last, is missing")
    told = _manifest(source, manifest)
    for name in sorted(found.keys() | told.members.keys()):
        if found.get(name) != told.members.get(name):
            raise _damaged(source, f"{name} is not what its manifest says")
    return told


def _unpack(opened: IO[bytes], folder: Path) -> tuple[dict[str, Member], bytes | None]:
    found: dict[str, Member] = {}
    manifest: bytes | None = None
    with tarfile.open(fileobj=opened, mode="r|") as tar:
        for entry in tar:
            if manifest is not None or not entry.isfile() or not _inside(entry.name) or entry.name in found:
                raise tarfile.ReadError(f"a member that cannot be: {entry.name[:200]!r}")
            read = tar.extractfile(entry)
            assert read is not None
            if entry.name == MANIFEST:
                manifest = read.read(MANIFEST_BYTES)
                continue
            target, hashed = folder / entry.name, _Hashed(read)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with target.open("xb") as out:
                while block := hashed.read(BLOCK):
                    out.write(block)
            found[entry.name] = Member(sha256=hashed.digest.hexdigest(), size=entry.size)
    return found, manifest


def _manifest(source: str, data: bytes) -> Manifest:
    try:
        format_ = json.loads(data).get("format")
        if isinstance(format_, int) and format_ > FORMAT:
            message = (
                f"{source} is of the archive format {format_}, this release reads up to {FORMAT}. Restore it with the "
                "release that made it, or a newer one."
            )
            raise InvalidRequest(message)
        return Manifest.model_validate_json(data)
    except (ValueError, AttributeError, ValidationError) as error:
        raise _damaged(source, "its manifest makes no sense") from error


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name


def _damaged(source: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{source} is damaged, or no backup of MindFu: {why}. Nothing was restored.")


@contextmanager
def _reaching(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable("place of the archive", f"{where}: {error.strerror or error}") from error


class _Reads(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Hashed:
    """Reads from a file, and hashes what was read."""

    def __init__(self, file: _Reads) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data
