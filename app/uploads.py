"""Files that clients upload: what OpenAI calls files. PostgreSQL holds their bytes.

Every method takes the tenant, and raises NotFound for what the tenant does not have, Unavailable while PostgreSQL is
away.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import asyncpg

from app.errors import NotFound
from app.ids import new_id
from app.messages import Strict
from app.nul import hide, show
from app.postgres import reaching_postgres, transaction
from app.queries import queries

Purpose = Literal["assistants", "user_data", "fine-tune"]

SQL = queries("uploads.sql")


class Upload(Strict):
    """A file that was uploaded. media_type: as its sender declared it."""

    id: str
    name: str
    media_type: str | None
    purpose: Purpose
    bytes: int
    created_at: datetime
    expires_at: datetime | None


class Uploads:
    """The files of one database. Closing the pool is its owner's."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def keep(
        self, tenant: str, name: str, media_type: str | None, purpose: Purpose, data: bytes, lives_s: int | None
    ) -> Upload:
        """A new file. lives_s: seconds until it is deleted, None for ever."""
        now = datetime.now(UTC)
        upload = Upload(
            id=new_id("file-"),
            name=name,
            media_type=media_type,
            purpose=purpose,
            bytes=len(data),
            created_at=now,
            expires_at=None if lives_s is None else now + timedelta(seconds=lives_s),
        )
        facts = (upload.id, hide(tenant), hide(name), media_type and hide(media_type), purpose, upload.bytes)
        async with transaction(self._pool) as connection:
            await connection.execute(SQL["keep"], *facts, now, upload.expires_at)
            await connection.execute(SQL["keep_bytes"], upload.id, data)
        return upload

    async def all(self, tenant: str, purpose: str | None = None) -> tuple[Upload, ...]:
        """The oldest first."""
        with reaching_postgres():
            return tuple(map(_upload, await self._pool.fetch(SQL["all"], hide(tenant), purpose)))

    async def one(self, tenant: str, upload_id: str) -> Upload:
        """One file."""
        return (await self.several(tenant, [upload_id]))[upload_id]

    async def several(self, tenant: str, upload_ids: Sequence[str]) -> dict[str, Upload]:
        """Files by their ids. Raises NotFound for the first that is not there."""
        with reaching_postgres():
            rows = await self._pool.fetch(SQL["several"], hide(tenant), [hide(id_) for id_ in upload_ids])
        found = {row["id"]: _upload(row) for row in rows}
        if missing := next((id_ for id_ in upload_ids if id_ not in found), None):
            raise NotFound("file", missing[:80])
        return found

    async def content(self, tenant: str, upload_id: str) -> tuple[Upload, bytes]:
        """One file with its bytes."""
        upload = await self.one(tenant, upload_id)
        with reaching_postgres():
            data: bytes | None = await self._pool.fetchval(SQL["content"], upload_id)
        if data is None:  # deleted in this moment
            raise NotFound("file", upload_id)
        return upload, data

    async def delete(self, tenant: str, upload_id: str) -> None:
        """Delete a file, and have it leave all shelves."""
        async with transaction(self._pool) as connection:
            await connection.execute(SQL["take_off"], hide(tenant), hide(upload_id))
            if await connection.fetchval(SQL["delete"], hide(tenant), hide(upload_id)) is None:
                raise NotFound("file", upload_id[:80])


def _upload(row: asyncpg.Record) -> Upload:
    fields = {name: row[name] for name in Upload.model_fields}
    media_type = row["media_type"] and show(row["media_type"])
    return Upload.model_validate(fields | {"name": show(row["name"]), "media_type": media_type})
