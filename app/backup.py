"""One archive of everything that cannot be made again: PostgreSQL, vectors, documents, adapters, MLflow, keys.

    manifest = await backup(Stores(url, home, vectors), "s3://bucket/backups")

    postgres.dump                   pg_dump's custom format
    vectors/<collection>.parquet    chunks and vectors, of any vector store (app/points.py)
    files/…                         the documents as they were sent
    adapters/…                      what answers, and PEFT's form of it
    mlflow/… datasets/… spool/… keys/pepper

It is taken while everything runs, and is of one moment: that of PostgreSQL's snapshot. Vectors and files are read after
it, of exactly the documents that it knows; where one was deleted in between, it is all done again with a later one.
Left out is what can be made or fetched again: models, stages' folders. app/restore.py reads it.
"""

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import asyncpg

from app import points
from app.archive import Facts, Manifest, new_name, require_new, writing
from app.memory import COLLECTION, memory_id
from app.messages import Index
from app.nul import show
from app.postgres import open_pool, reaching_postgres
from app.postgres_dump import dump
from app.queries import queries
from app.vectors import Floats, Vectors

DUMP, VECTORS = "postgres.dump", "vectors"
ATTEMPTS = 5  # at finding a moment in which nothing is deleted
TOGETHER = 16  # documents that the vector store is asked for at the same time
SQL = queries("backup.sql")


@dataclass(frozen=True)
class Stores:
    """What is backed up, and restored to. postgres_url: None for the embedded server of the home."""

    postgres_url: str | None
    home: Path
    vectors: Vectors


class Held(NamedTuple):
    """What the vector store holds of a document, or should."""

    collection: str
    tenant: str
    document_id: str
    chunks: int


@dataclass
class Moment:
    """What PostgreSQL knows at one moment."""

    held: list[Held]
    files: list[str]  # beneath the home folder
    adapters: dict[str, Path]  # by their names in the archive
    counts: dict[str, int]
    migrations: dict[int, str]
    incomplete: list[str] = field(default_factory=list)


async def backup(stores: Stores, target: str) -> tuple[str, Manifest]:
    """Write an archive to a folder, file or URL. Returns its place, and what is in it.

    Raises Conflict, InvalidRequest, Unavailable; then there is no archive. What was not whole (a document whose chunks
    or file are missing, as they would be without a backup) is told in `facts.incomplete`.
    """
    now = datetime.now(UTC)
    place = new_name(target, now)
    require_new(place)
    with tempfile.TemporaryDirectory(prefix="backup-", dir=stores.home) as scratch:
        folder = Path(scratch)
        moment = await _collect(stores, folder)
        _copy_rest(stores.home, folder)
        facts = Facts(
            mindfu=version("mindfu"),
            created_at=now,
            migrations=moment.migrations,
            counts=moment.counts,
            incomplete=tuple(moment.incomplete),
        )
        return place, await asyncio.to_thread(_write, place, folder, facts)


def _write(place: str, folder: Path, facts: Facts) -> Manifest:
    with writing(place) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.add(str(file.relative_to(folder)), file)
        return archive.close(facts)


async def _collect(stores: Stores, folder: Path) -> Moment:
    """Database, vectors, files and adapters of one moment."""
    pool = await open_pool(stores.postgres_url, stores.home)
    try:
        before: list[str] | None = None
        for _ in range(ATTEMPTS):
            moment = await _dumped(pool, stores, folder)
            _empty(folder)
            moment.incomplete += await _copy_vectors(stores.vectors, moment.held, folder / VECTORS)
            moment.incomplete += _linked(moment.files, stores.home, folder)
            moment.incomplete += _copy_adapters(moment.adapters, stores.home, folder)
            if not moment.incomplete or moment.incomplete == before:  # it is so, and no deletion of this minute
                break
            before = moment.incomplete
        return moment
    finally:
        await pool.close()


def _empty(folder: Path) -> None:
    """Of what an earlier attempt left."""
    for part in (VECTORS, "files", "adapters"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / VECTORS).mkdir()


async def _dumped(pool: asyncpg.Pool, stores: Stores, folder: Path) -> Moment:
    async with _snapshot(pool) as (connection, snapshot):
        await dump(stores.postgres_url, stores.home, folder / DUMP, snapshot=snapshot)
        return await _moment(connection)


@asynccontextmanager
async def _snapshot(pool: asyncpg.Pool) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    with reaching_postgres():
        async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection, await connection.fetchval(SQL["snapshot"])


async def _moment(connection: asyncpg.Connection) -> Moment:
    documents = await connection.fetch(SQL["documents"])
    memories = await connection.fetch(SQL["memories"])
    held = [Held(row["collection"], row["tenant"], row["id"], row["chunks"]) for row in documents]
    held += [
        Held(COLLECTION, show(row["tenant"]), memory_id(row["id"], row["created_at"]), row["chunks"])
        for row in memories
    ]
    adapters = {}
    for row in await connection.fetch(SQL["adapters"]):
        path = Path(row["path"])
        adapters[f"adapters/{row['model']}/{row['version']}.gguf" if path.is_absolute() else row["path"]] = path
    counts = dict(await connection.fetchrow(SQL["counts"]))
    return Moment(
        held=held,
        files=[f"files/{row['sha256'].hex()[:2]}/{row['id']}" for row in documents],
        adapters=adapters,
        counts=counts | {"documents": len(documents), "adapters": len(adapters), "chunks": sum(h.chunks for h in held)},
        migrations=dict(await connection.fetch(SQL["migrations"])),
    )


async def _copy_vectors(vectors: Vectors, held: Sequence[Held], folder: Path) -> list[str]:
    """One file for each collection. Returns what the store does not hold as it should."""
    missing = []
    for collection, documents in groupby(sorted(held), key=lambda one: one.collection):
        wanted, space = list(documents), await vectors.space(collection)
        if space is None:
            missing += [f"chunks of {one.document_id}" for one in wanted if one.chunks]
            continue
        with points.writing(folder / f"{collection}.parquet", space) as add:
            for some in _slices(wanted, TOGETHER):
                found = await asyncio.gather(*(vectors.fetch(collection, one.tenant, one.document_id) for one in some))
                for one, fetched in zip(some, found, strict=True):
                    if fetched is not None:
                        add(*fetched)
                    if _chunks(fetched) != one.chunks:
                        missing.append(f"chunks of {one.document_id}")
    return missing


def _chunks(fetched: tuple[Index, Floats] | None) -> int:
    return len(fetched[0].chunks) if fetched else 0


def _slices(items: Sequence[Held], size: int) -> Iterator[Sequence[Held]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _copy_adapters(adapters: dict[str, Path], home: Path, folder: Path) -> list[str]:
    """Those that can be asked for, wherever they lie, and all else in their folder."""
    _linked(_files_in(home, "adapters"), home, folder)
    missing = []
    for name, path in adapters.items():
        if not (folder / name).exists() and not _link(home / path, folder / name):
            missing.append(f"adapter {name}")
    return missing


def _copy_rest(home: Path, folder: Path) -> None:
    """What stands by itself."""
    _linked(_files_in(home, "spool", ".json"), home, folder)
    _linked(_files_in(home, "mlflow/artifacts"), home, folder)
    for name in ("keys/pepper", "datasets/assignments.jsonl"):
        if (home / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(home / name, folder / name)
    database = home / "mlflow" / "mlflow.db"
    if database.exists():
        (folder / "mlflow").mkdir(exist_ok=True)
        with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(folder / "mlflow/mlflow.db")) as copy:
            live.backup(copy)


def _files_in(home: Path, part: str, suffix: str = "") -> Iterator[str]:
    """Finished files, by their paths beneath the home."""
    for path in (home / part).rglob("*"):
        if path.is_file() and path.suffix != ".part" and path.name.endswith(suffix):
            yield str(path.relative_to(home))


def _linked(names: Iterable[str], home: Path, folder: Path) -> list[str]:
    """Have files that never change in the folder as well, where a deletion does not reach them. Returns the missing."""
    return [f"file {name}" for name in names if not _link(home / name, folder / name)]


def _link(source: Path, target: Path) -> bool:
    """False where there is no such file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # another user's file, or a file system without hard links
            shutil.copyfile(source, target)
        return True
    return False
