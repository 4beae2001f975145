"""OpenAI's files: kept for vector stores, and for training."""

from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, File, Form, Query, Response, UploadFile

from app.dialects import openai_files as dialect
from app.dialects.events import Json
from app.errors import TooLarge
from app.reading_text import file_name
from deployments.routes.bodies import Route
from deployments.routes.callers import Tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway

Order = Literal["asc", "desc"]


def routes(gateway: "Gateway") -> APIRouter:
    """The file routes of one gateway."""
    router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Route)

    @router.post("")
    async def upload(
        tenant: Tenant,
        file: Annotated[UploadFile, File()],
        purpose: Annotated[str, Form()],
        anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[str | None, Form(alias="expires_after[seconds]")] = None,
    ) -> Json:
        """Keep a file."""
        known, life, data = dialect.purpose_of(purpose), dialect.life_of(anchor, seconds), await file.read()
        most = gateway.settings.documents.max_bytes
        if len(data) > most:
            raise TooLarge("The file", len(data), most, "bytes", "documents.max_bytes")
        name = file_name(file.filename or "") or "unnamed"
        work = gateway.uploads.keep(tenant, name, file.content_type, known, data, life)
        return dialect.upload(await gateway.recorder.read(work))

    @router.get("")
    async def list_files(
        tenant: Tenant,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Order = "desc",
        after: str | None = None,
    ) -> Json:
        """The files, the newest first."""
        found = await gateway.recorder.read(gateway.uploads.all(tenant, purpose))
        return dialect.listed(
            [dialect.upload(one) for one in found], limit=limit, order=order, after=after, before=None
        )

    @router.get("/{file_id}")
    async def get(tenant: Tenant, file_id: str) -> Json:
        """One file."""
        return dialect.upload(await gateway.recorder.read(gateway.uploads.one(tenant, file_id)))

    @router.get("/{file_id}/content")
    async def content(tenant: Tenant, file_id: str) -> Response:
        """What is in it, as it was sent: to be saved, never to be shown by a browser."""
        kept, data = await gateway.recorder.read(gateway.uploads.content(tenant, file_id))
        headers = {
            "content-disposition": f"attachment; filename*=UTF-8''{quote(kept.name, safe='')}",
            "x-content-type-options": "nosniff",
        }
        return Response(data, media_type="application/octet-stream", headers=headers)

    @router.delete("/{file_id}")
    async def delete(tenant: Tenant, file_id: str) -> Json:
        """Delete a file, and take it off all vector stores."""
        await gateway.recorder.read(gateway.uploads.delete(tenant, file_id))
        return dialect.deleted("file", file_id)

    return router
