"""How much there is: conversations, documents, memory, and what they take on the disk. For `mindfu stats`."""

from pathlib import Path
from typing import Any

import asyncpg

from app.nul import hide
from app.postgres import reaching_postgres
from app.queries import queries

SQL = queries("stats.sql")
FOLDERS = ("files", "qdrant", "models", "adapters", "spool")  # of the home folder


async def counted(pool: asyncpg.Pool, tenant: str | None = None) -> dict[str, dict[str, Any]]:
    """Numbers by part and name. tenant: None for all of them together. Raises Unavailable."""
    found: dict[str, dict[str, Any]] = {}
    with reaching_postgres():
        async with pool.acquire() as connection:
            for part in ("conversations", "memory", "documents", "files"):
                found[part] = dict(await connection.fetchrow(SQL[part], None if tenant is None else hide(tenant)))
            rows = await connection.fetch(SQL["collections"], None if tenant is None else hide(tenant))
            found["collections"] = {row["collection"]: row["chunks"] for row in rows}
            found["disk"] = {"postgres": await connection.fetchval(SQL["database_size"])}
    return found


def disk(home: Path) -> dict[str, int]:
    """Bytes in the folders of the home, those that there are."""
    return {name: _size(home / name) for name in FOLDERS if (home / name).exists()}


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0  # what is there: Qdrant's files have holes
        except OSError:  # gone meanwhile
            continue
    return total
