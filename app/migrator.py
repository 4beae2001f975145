"""Bring a database to the schema that this release needs.

The files app/migrations/NNNN_<name>.sql are applied in order of their numbers, all in one transaction, under a lock
that makes processes which start together take turns. An applied file is never changed: its SHA-256 is recorded, and a
difference is refused. Nothing ever runs backwards: a database that knows files which we do not (a newer release ran
here) is left as it is, so that a release can be rolled back, for a migration leaves older releases working. One that
cannot says so in a line of its own, `-- oldest: NNNN`, the migration that a release must know to go on: a release that
does not is refused.
"""

import hashlib
import re
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
    applied_at timestamptz not null default now(),
    oldest int not null default 0
);
do $$ begin     -- asked first: altering waits for whoever reads the table, such as a backup
    if not exists (select from pg_attribute where attrelid = 'migrations'::regclass and attname = 'oldest') then
        alter table migrations add column oldest int not null default 0;
    end if;
end $$
"""
OLDEST = re.compile(r"^-- oldest: (\d+)$", re.MULTILINE)


class Migration(NamedTuple):
    """One numbered file."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def oldest(self) -> int:
        """The migration that a release must know to work after this one; 0: every release does."""
        found = OLDEST.search(self.sql)
        return int(found[1]) if found else 0


def shipped() -> tuple[Migration, ...]:
    """The migrations of this release, in order."""
    found = (path for path in files("app").joinpath("migrations").iterdir() if path.name.endswith(".sql"))
    return tuple(sorted(Migration(int(path.name.split("_")[0]), path.name, path.read_text("utf-8")) for path in found))


async def migrate(connection: asyncpg.Connection, migrations: tuple[Migration, ...] | None = None) -> None:
    """Apply what is missing. migrations: in order; None: those of this release.

    Raises Misconfigured, changing nothing, where an applied file was changed, two files share a number, or the database
    is of a release that is too new for this one.
    """
    migrations = shipped() if migrations is None else migrations
    _refuse_twins(migrations)
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
        await connection.execute(APPLIED)
        await _refuse_backwards(connection, migrations)
        applied = dict(await connection.fetch("select number, sha256 from migrations"))
        for migration in migrations:
            if migration.number not in applied:
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into migrations (number, name, sha256, oldest) values ($1, $2, $3, $4)",
                    *(migration.number, migration.name, migration.sha256, migration.oldest),
                )
            elif applied[migration.number] != migration.sha256:
                raise Misconfigured(
                    f"app/migrations/{migration.name}",
                    "was changed after it had been applied to this database",
                    "Restore the file, and put the change into a new migration.",
                )


async def _refuse_backwards(connection: asyncpg.Connection, migrations: tuple[Migration, ...]) -> None:
    known = max((migration.number for migration in migrations), default=0)
    too_new = await connection.fetchrow("select name, oldest from migrations where oldest > $1 limit 1", known)
    if too_new is not None:
        problem = (
            f"is a database after {too_new['name']}, which needs a release with migration {too_new['oldest']:04} or "
            f"newer, and this one knows them up to {known:04}"
        )
        remedy = "Run the newer release, or restore a backup of before into an empty database."
        raise Misconfigured("MINDFU_POSTGRES_URL", problem, remedy)


def _refuse_twins(migrations: tuple[Migration, ...]) -> None:
    names: dict[int, str] = {}
    for migration in migrations:
        twin = names.setdefault(migration.number, migration.name)
        if twin != migration.name:
            raise Misconfigured(f"app/migrations/{migration.name}", f"has the number of {twin}", "Give it another one.")
