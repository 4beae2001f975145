"""An archive (app/backup.py) becomes a home again, or goes into stores by URL: only into what is empty.

    manifest = await restore(Stores(url, home, vectors), "s3://bucket/backups/mindfu-20261121T030000Z.tar")

Everything is compared with the manifest before anything is written. An archive of an older release is brought to this
one's schema; one of a newer release is refused. It may go where other stores are used than those that it came from.
"""

import shutil
import tempfile
from pathlib import Path

import asyncpg

from app import points
from app.archive import Facts, Manifest, extract
from app.backup import DUMP, SQL, VECTORS, Stores
from app.errors import Conflict, InvalidRequest
from app.migrator import Migration, shipped
from app.postgres import open_pool, reaching_postgres
from app.postgres_attachment import Attachment
from app.postgres_dump import load
from app.postgres_home import PostgresHome
from app.vectors import Vectors

PLAIN = ("files", "adapters", "mlflow", "datasets", "spool")  # folders that are what they are
STATE = ("postgres/data", "qdrant", "keys/pepper", *PLAIN)  # what makes a home one that is used


async def restore(stores: Stores, source: str) -> Manifest:
    """Bring everything back. Returns what there was.

    Raises Conflict where there is something already; InvalidRequest for an archive that is damaged or of a newer
    release: then nothing was written. Unavailable: a store or the archive is away.
    """
    home = stores.home
    require_unused(home)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=home) as scratch:
        folder = Path(scratch)
        manifest = extract(source, folder)
        _refuse_newer(source, manifest.facts, shipped())
        files = sorted((folder / VECTORS).glob("*.parquet"))
        await _refuse_collections(stores.vectors, [file.stem for file in files])
        await _load_database(stores, folder / DUMP)
        for file in files:
            await _load_vectors(stores.vectors, file)
        for name in PLAIN:
            if (folder / name).exists():
                shutil.rmtree(home / name, ignore_errors=True)  # it is empty, or we would not be here
                (folder / name).rename(home / name)
        if (pepper := folder / "keys" / "pepper").exists():
            (home / "keys").mkdir(exist_ok=True, mode=0o700)
            pepper.chmod(0o600)
            pepper.rename(home / "keys" / "pepper")
    return manifest


def require_unused(home: Path) -> None:
    """Raise Conflict where the home holds what a restore would write over. Models and Ray's token may be there."""
    for name in STATE:
        path = home / name
        if path.is_file() or (path.is_dir() and any(not file.name.startswith(".") for file in path.iterdir())):
            message = (
                f"{path} is there already, and a restore never writes over data. Set MINDFU_HOME to a new folder, or "
                "move this one away."
            )
            raise Conflict(message)


def _refuse_newer(source: str, facts: Facts, ours: tuple[Migration, ...]) -> None:
    known = {migration.number: migration.sha256 for migration in ours}
    if newer := sorted(facts.migrations.keys() - known.keys()):
        message = (
            f"{source} was made by MindFu {facts.mindfu} with schema {newer[-1]}, this release knows "
            f"{max(known)}. Restore it with that release, or a newer one."
        )
        raise InvalidRequest(message)
    if changed := [number for number, sha256 in facts.migrations.items() if known[number] != sha256]:
        message = f"{source} has another migration {changed[0]} than this release: it is of another line of MindFu."
        raise InvalidRequest(message)


async def _refuse_collections(vectors: Vectors, names: list[str]) -> None:
    for name in names:
        if await vectors.space(name) is not None:
            message = f"The vector store has a collection '{name}' already. Restore into an empty one."
            raise Conflict(message)


async def _load_database(stores: Stores, file: Path) -> None:
    """Into an empty database; then to this release's schema."""
    attachment = None if stores.postgres_url else Attachment(PostgresHome(stores.home))
    try:
        if attachment:
            await attachment.hold()
        else:
            await _require_empty(stores.postgres_url)
        await load(stores.postgres_url, stores.home, file)
        pool = await open_pool(stores.postgres_url, stores.home)
        try:
            with reaching_postgres():
                await pool.execute(SQL["adapters_come_home"])
        finally:
            await pool.close()
    finally:
        if attachment:
            await attachment.leave()


async def _require_empty(url: str | None) -> None:
    with reaching_postgres():
        connection = await asyncpg.connect(url)
        try:
            tables = await connection.fetchval(SQL["tables"])
        finally:
            await connection.close()
    if tables:
        message = (
            f"The database of MINDFU_POSTGRES_URL has {tables} tables, and a restore never writes over data. Make a "
            "new one (`createdb`), and set its URL."
        )
        raise Conflict(message)


async def _load_vectors(vectors: Vectors, file: Path) -> None:
    space, documents = points.read(file)
    await vectors.create(file.stem, space)
    for index, found in documents:
        await vectors.upsert(index, found)
