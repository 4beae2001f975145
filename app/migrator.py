"""Bring a database to the schema that this release needs.

The files app/migrations/NNNN_<name>.sql are applied in order of their numbers, all in one transaction, under a lock
that makes processes which start together take turns. An applied file is never changed: its SHA-256 is recorded, and a
difference is refused. A database that knows files which we do not (a newer release ran here) is left as it is, so
that a release can be rolled back: every migration must leave the previous release working.
"""

import hashlib
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from app.errors import Misconfigured

LOCK = 7_266_883_107  # any number, ours alone
APPLIED = """
create table if not exists migrations (
    number int primary key,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default now()
)
"""


class Migration(NamedTuple):
    """One numbered file."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped() -> tuple[Migration, ...]:
    """The migrations of this release, in order."""
    found = (path for path in files("app").joinpath("migrations").iterdir() if path.name.endswith(".sql"))
    return tuple(sorted(Migration(int(path.name.split("_")[0]), path.name, path.read_text("utf-8")) for path in found))


async def migrate(connection: asyncpg.Connection, migrations: tuple[Migration, ...] | None = None) -> None:
    """Apply what is missing. migrations: in order; None: those of this release.

    Raises Misconfigured, changing nothing, where an applied file was changed or two files share a number.
    """
    migrations = shipped() if migrations is None else migrations
    _refuse_twins(migrations)
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
        await connection.execute(APPLIED)
        applied = dict(await connection.fetch("select number, sha256 from migrations"))
        for migration in migrations:
            if migration.number not in applied:
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into migrations (number, name, sha256) values ($1, $2, $3)",
                    *(migration.number, migration.name, migration.sha256),
                )
            elif applied[migration.number] != migration.sha256:
                raise Misconfigured(
                    f"app/migrations/{migration.name}",
                    "was changed after it had been applied to this database",
                    "Restore the file, and put the change into a new migration.",
                )


def _refuse_twins(migrations: tuple[Migration, ...]) -> None:
    names: dict[int, str] = {}
    for migration in migrations:
        twin = names.setdefault(migration.number, migration.name)
        if twin != migration.name:
            raise Misconfigured(f"app/migrations/{migration.name}", f"has the number of {twin}", "Give it another one.")
