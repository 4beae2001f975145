"""Forgetting: a conversation, or all of a person, a key or a tenant, goes from everywhere that it went.

    gone = await forgetting.conversation("default", conversation_id)     # gone.adapters learnt from it
    gone = await forgetting.all_of("default", user="ann")
    await sweep(pool, home)                 # data sets on disk; while no training run works

From PostgreSQL it goes at once, and with it from what is found in memory, whose vectors follow within seconds
(app/memory.py). Adapters cannot forget: those that learnt from it are marked, by the database itself
(0012_runs.sql), and get to answer no more: not by a promotion, not by force, and not by a rollback. One that answers
goes on until another is promoted. What was read of it into data sets is deleted with them: they are made anew from what
is left. Names of conversations stay where they say what was ever tested on (datasets/assignments.jsonl), without words.

Backups, and what DVC or people copied elsewhere, are theirs to delete.
"""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from app.conversations import Conversations
from app.errors import NotFound
from app.nul import hide
from app.postgres import reaching_postgres
from app.queries import queries

SQL = queries("forgetting.sql")
BATCH = 100  # conversations that are looked up at a time
ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MANIFEST = "manifest.json"
WEIGHTS = ("tune", "publish", "formats")  # stages whose folders hold no words, once they are finished
REPORTS = ("report.html", "report.md")  # that MLflow has of an evaluation; they quote answers


class Gone(NamedTuple):
    """What was forgotten. adapters: that learnt from it, as model@version."""

    conversations: int
    adapters: tuple[str, ...]


class Forgetting:
    """Of one database. Every method raises Unavailable while it is away."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def conversation(self, tenant: str, conversation_id: str) -> Gone:
        """One conversation. Raises NotFound."""
        turns = await self._turns(tenant, conversation_id)
        await Conversations(self._pool).delete(tenant, conversation_id)
        return Gone(1, await self._learnt(turns))

    async def all_of(self, tenant: str, *, user: str | None = None, key: str | None = None) -> Gone:
        """All conversations of a tenant; of one person in it, as clients named them (`user`, `safety_identifier`,
        `metadata.user_id`, the `user` of feedback); of one key, by its id.

        A conversation in which any turn is theirs goes as a whole.
        """
        wanted = (hide(tenant), user and hide(user), key, BATCH)
        count, turns = 0, list[str]()
        while True:
            with reaching_postgres():
                rows = await self._pool.fetch(SQL["conversations"], *wanted)
            if not rows:
                return Gone(count, await self._learnt(turns))
            for row in rows:
                conversation = str(row["conversation_id"])
                turns += await self._turns(tenant, conversation)
                try:
                    await Conversations(self._pool).delete(tenant, conversation)
                except NotFound:  # somebody else was faster
                    continue
                count += 1

    async def tainted(self) -> tuple[str, ...]:
        """All adapters that learnt from what is gone, as model@version."""
        with reaching_postgres():
            return tuple(row["name"] for row in await self._pool.fetch(SQL["tainted"]))

    async def _turns(self, tenant: str, conversation_id: str) -> list[str]:
        try:
            wanted = UUID(conversation_id)
        except ValueError:
            raise NotFound("conversation", conversation_id) from None
        with reaching_postgres():
            return [row["id"] for row in await self._pool.fetch(SQL["turns"], wanted, hide(tenant))]

    async def _learnt(self, turns: Sequence[str]) -> tuple[str, ...]:
        with reaching_postgres():
            return tuple(row["name"] for row in await self._pool.fetch(SQL["learnt"], list(turns)))


async def sweep(pool: asyncpg.Pool, home: Path) -> tuple[Path, ...]:
    """Delete the data sets on disk that hold what was forgotten. Returns their folders. Not while a run works."""
    with reaching_postgres():
        turns = [row["id"] for row in await pool.fetch(SQL["to_sweep"])]
    if not turns:
        return ()
    swept = await asyncio.to_thread(purge, home, frozenset(turn.encode() for turn in turns))
    with reaching_postgres():
        await pool.execute(SQL["swept"], [UUID(turn) for turn in turns])
    return swept


def purge(home: Path, turns: frozenset[bytes]) -> tuple[Path, ...]:
    """Delete the stages' folders that hold words of these turns, and all that was made of those but weights."""
    doomed = {folder for folder in _folders(home) if _holds(folder, turns)}
    manifests = {folder: _manifest(folder) for folder in _folders(home)}
    while True:
        contents = {told["content"] for folder in doomed if (told := manifests.get(folder))}
        derived = {
            folder
            for folder, told in manifests.items()
            if told and folder not in doomed and {one["content"] for one in told["inputs"].values()} & contents
        }
        words = {folder for folder in derived if not folder.name.startswith(WEIGHTS)}
        for folder in derived - words:
            _clean(home, folder, manifests)
        if not words:
            break
        doomed |= words
    for folder in doomed:
        shutil.rmtree(folder)
    if doomed:
        for rows in (home / "runs").glob("tune-*/.rows"):  # of interrupted training: tokens, which are made anew
            shutil.rmtree(rows)
    return tuple(sorted(doomed))


def _folders(home: Path) -> list[Path]:
    return [folder for place in ("datasets", "runs") for folder in (home / place).glob("*-*") if folder.is_dir()]


def _holds(folder: Path, turns: frozenset[bytes]) -> bool:
    """Whether any line of its files names one of the turns."""
    return any(turns & set(ID.findall(line)) for file in folder.glob("*.jsonl") for line in _lines(file))


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        yield from opened


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:  # unfinished
        return None
    return told


def _clean(home: Path, folder: Path, manifests: dict[Path, dict[str, Any] | None]) -> None:
    """Of what was made without words in it: MLflow's copy of the evaluation's report goes."""
    told = manifests[folder]
    tuned = told["inputs"].get("tuned", {}).get("path") if told else None
    made = _manifest(Path(tuned)) if tuned else None
    run = made["facts"].get("mlflow_run") if made else None
    if run:
        for name in REPORTS:
            for file in (home / "mlflow" / "artifacts").glob(f"**/{run}/artifacts/{name}"):
                file.unlink()
