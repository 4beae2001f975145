"""pg_dump and pg_restore, of the PostgreSQL that comes with the embedded one: for that one, or any older by URL."""

import asyncio
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from app.errors import Unavailable
from app.postgres_home import PostgresHome, binaries


async def dump(url: str | None, home: Path, file: Path, *, snapshot: str) -> None:
    """Write a dump of the database, as it is in an exported snapshot. Raises Unavailable with PostgreSQL's own words.

    url: None for the embedded server of the home, which must be running. Counters of requests a minute are left out.
    """
    options = ("--format=custom", "--no-owner", "--no-privileges", "--no-unlogged-table-data", f"--snapshot={snapshot}")
    await _run("pg_dump", url, home, *options, f"--file={file}")


async def load(url: str | None, home: Path, file: Path) -> None:
    """Read a dump into an empty database, all of it or nothing. Raises Unavailable with PostgreSQL's own words."""
    options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", str(file))
    await _run("pg_restore", url, home, *options)


async def _run(program: str, url: str | None, home: Path, *arguments: str) -> None:
    place, password = _place(url, home)
    process = await asyncio.create_subprocess_exec(
        binaries() / program,
        f"--dbname={place}",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"} | ({"PGPASSWORD": password} if password else {}),
    )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise Unavailable("database", f"{program} ended with {process.returncode}: {said.decode().strip()[-2000:]}")


def _place(url: str | None, home: Path) -> tuple[str, str | None]:
    """The database as libpq takes it, and the password apart: command lines are everybody's to read."""
    if url is None:
        return f"host='{PostgresHome(home).run}' port=5432 user=postgres dbname=postgres", None
    parts = urlsplit(url)
    if parts.password is None:
        return url, None
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=user.partition(":")[0] + at + host)), unquote(parts.password)
