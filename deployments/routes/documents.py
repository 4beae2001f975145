"""Documents: take in, find, list, get, delete."""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, File, Form, Query, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import Field, Json

from app.dialects import openai
from app.memory import require_open
from app.messages import Metadata, NewText, Search, Strict
from deployments.calls import call
from deployments.recall import Recall
from deployments.routes.bodies import Route
from deployments.routes.callers import Tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway


class DocumentQuery(Strict):
    """POST /v1/documents/query: the passages that a chat would be given."""

    query: str = Field(min_length=1)
    top_k: int = Field(5, ge=1, le=100)
    min_score: float | None = Field(None, ge=-1.0, le=1.0)  # None: the setting
    collections: tuple[str, ...] | None = Field(None, min_length=1, max_length=16)


def routes(gateway: "Gateway") -> APIRouter:
    """The document routes of one gateway."""
    router = APIRouter(prefix="/v1/documents", tags=["documents"], route_class=Route)

    @router.post("")
    async def add_text(tenant: Tenant, body: NewText) -> Response:
        """Take in a text. 201, or 200 with `"duplicate": true` when the collection holds this content already."""
        require_open(body.collection)
        return _added(await call("librarian", gateway.librarian, "add_text", tenant, body))

    @router.post("/upload")
    async def upload(
        tenant: Tenant,
        file: Annotated[UploadFile, File()],
        collection: Annotated[str, Form()] = "default",
        title: Annotated[str | None, Form()] = None,
        metadata: Annotated[Json[Metadata] | None, Form()] = None,
    ) -> Response:
        """Take in a file: PDF, DOCX, Markdown, HTML, plain text or source code."""
        require_open(collection)
        name, data = file.filename or "unnamed", await file.read()
        arguments = (tenant, collection, name, file.content_type, data, title, metadata)
        return _added(await call("librarian", gateway.librarian, "add_file", *arguments))

    @router.post("/query")
    async def query(tenant: Tenant, body: DocumentQuery) -> dict[str, Any]:
        """Find passages, best first."""
        search = Search(
            query=body.query,
            tenant=tenant,
            collections=body.collections or gateway.settings.rag.collections,
            top_k=body.top_k,
            min_score=gateway.settings.rag.min_score if body.min_score is None else body.min_score,
        )
        found = await Recall(gateway.retriever, gateway.recorder).search(search)
        return {"object": "list", "data": openai.sources(found)}

    @router.get("")
    async def list_documents(
        tenant: Tenant,
        collection: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: str | None = None,
    ) -> dict[str, Any]:
        """The documents, newest first."""
        page = await call("librarian", gateway.librarian, "list", tenant, collection, limit, after)
        return {"object": "list", "data": [document.model_dump(mode="json") for document in page]}

    @router.get("/{document_id}")
    async def get(tenant: Tenant, document_id: str) -> dict[str, Any]:
        """One document."""
        document = await call("librarian", gateway.librarian, "get", tenant, document_id)
        data: dict[str, Any] = document.model_dump(mode="json")
        return data

    @router.delete("/{document_id}")
    async def delete(tenant: Tenant, document_id: str) -> dict[str, Any]:
        """Forget a document: its file, its passages, its vectors."""
        await call("librarian", gateway.librarian, "delete", tenant, document_id)
        return {"id": document_id, "object": "document.deleted", "deleted": True}

    return router


def _added(added: Any) -> Response:
    content = added.document.model_dump(mode="json") | {"duplicate": added.duplicate}
    return JSONResponse(content, 200 if added.duplicate else 201)
