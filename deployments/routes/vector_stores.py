"""OpenAI's vector stores: files that can be searched, apart from all others. See app/shelves.py."""

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query

from app.dialects import openai_files as dialect
from app.dialects.events import Json
from app.dialects.openai_filters import matches
from app.messages import Chunk, Passage, Search
from app.shelves import FileStatus
from deployments.calls import call
from deployments.recall import Recall
from deployments.routes.bodies import Route
from deployments.routes.callers import Tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
Cursor = str | None


def routes(gateway: "Gateway") -> APIRouter:
    """The vector store routes of one gateway."""
    router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"], route_class=Route)
    _stores(router, gateway)
    _files(router, gateway)
    _batches(router, gateway)
    return router


def _stores(router: APIRouter, gateway: "Gateway") -> None:
    @router.post("")
    async def create(tenant: Tenant, body: dialect.NewShelf) -> Json:
        """Make a vector store; its files come a moment later."""
        made = gateway.shelves.make(
            tenant,
            name=body.name or "",
            description=body.description,
            metadata=body.metadata or {},
            expires_days=body.expires_after.days if body.expires_after else None,
            puts=body.puts(),
        )
        return dialect.shelf(await gateway.recorder.read(made))

    @router.get("")
    async def list_stores(
        tenant: Tenant, limit: Limit = 20, order: Order = "desc", after: Cursor = None, before: Cursor = None
    ) -> Json:
        """The vector stores, the newest first."""
        found = await gateway.recorder.read(gateway.shelves.shelves(tenant))
        return dialect.listed(list(map(dialect.shelf, found)), limit=limit, order=order, after=after, before=before)

    @router.get("/{store_id}")
    async def get(tenant: Tenant, store_id: str) -> Json:
        """One vector store."""
        return dialect.shelf(await gateway.recorder.read(gateway.shelves.shelf(tenant, store_id)))

    @router.post("/{store_id}")
    async def modify(tenant: Tenant, store_id: str, body: dialect.ChangedShelf) -> Json:
        """Change its name, its expiry, its metadata."""
        changed = gateway.shelves.modify(
            tenant,
            store_id,
            name=body.name,
            metadata=body.metadata,
            expires_days=body.expires_after.days if body.expires_after else None,
            expiry="expires_after" in body.model_fields_set,
        )
        return dialect.shelf(await gateway.recorder.read(changed))

    @router.delete("/{store_id}")
    async def delete(tenant: Tenant, store_id: str) -> Json:
        """Delete a vector store. Its files stay files."""
        await gateway.recorder.read(gateway.shelves.delete(tenant, store_id))
        return dialect.deleted("vector_store.deleted", store_id)

    @router.post("/{store_id}/search")
    async def search(tenant: Tenant, store_id: str, body: dialect.ShelfSearch) -> Json:
        """Find passages of its files, best first."""
        body.require_supported()
        files = await gateway.recorder.read(gateway.shelves.searched(tenant, store_id))
        wanted = {
            id_: file for id_, file in files.items() if not body.filters or matches(body.filters, file.attributes)
        }
        best: dict[tuple[str, int], Passage] = {}
        for query in body.queries if wanted else ():
            asked = Search(
                query=query,
                tenant=tenant,
                collections=(store_id,),
                top_k=body.max_num_results,
                min_score=-1.0,
                only=tuple(wanted),
            )
            for passage in await Recall(gateway.retriever, gateway.recorder).search(asked):
                place = (passage.document_id, passage.chunk)
                if passage.score >= max(body.threshold, best[place].score if place in best else 0.0):
                    best[place] = passage
        found = sorted(best.values(), key=lambda passage: -passage.score)[: body.max_num_results]
        return dialect.search_page(body.queries, [(passage, wanted[passage.document_id]) for passage in found])


def _files(router: APIRouter, gateway: "Gateway") -> None:
    @router.post("/{store_id}/files")
    async def put(tenant: Tenant, store_id: str, body: dialect.NewFile) -> Json:
        """Put a file on a vector store, where it can be found a moment later."""
        await gateway.recorder.read(gateway.shelves.put(tenant, store_id, [body.put()]))
        return dialect.shelved(await gateway.recorder.read(gateway.shelves.file(tenant, store_id, body.file_id)))

    @router.get("/{store_id}/files")
    async def list_files(
        tenant: Tenant,
        store_id: str,
        limit: Limit = 20,
        order: Order = "desc",
        after: Cursor = None,
        before: Cursor = None,
        status: Annotated[FileStatus | None, Query(alias="filter")] = None,
    ) -> Json:
        """Its files, the newest first."""
        found = await gateway.recorder.read(gateway.shelves.files(tenant, store_id))
        told = [dialect.shelved(file) for file in found if status in {None, file.status}]
        return dialect.listed(told, limit=limit, order=order, after=after, before=before)

    @router.get("/{store_id}/files/{file_id}")
    async def get(tenant: Tenant, store_id: str, file_id: str) -> Json:
        """One of them."""
        return dialect.shelved(await gateway.recorder.read(gateway.shelves.file(tenant, store_id, file_id)))

    @router.post("/{store_id}/files/{file_id}")
    async def attribute(tenant: Tenant, store_id: str, file_id: str, body: dialect.ChangedFile) -> Json:
        """Say anew what filters may go by."""
        attributes = body.attributes or {}
        return dialect.shelved(
            await gateway.recorder.read(gateway.shelves.attribute(tenant, store_id, file_id, attributes))
        )

    @router.get("/{store_id}/files/{file_id}/content")
    async def content(tenant: Tenant, store_id: str, file_id: str) -> Json:
        """What was read of it, in the pieces that can be found."""
        file = await gateway.recorder.read(gateway.shelves.file(tenant, store_id, file_id))
        if file.document_id is None:
            return dialect.content_page(())
        chunks: tuple[Chunk, ...] = await call(
            "retriever", gateway.retriever, "chunks", store_id, file.document_id, tenant
        )
        return dialect.content_page(apart(chunks))

    @router.delete("/{store_id}/files/{file_id}")
    async def take(tenant: Tenant, store_id: str, file_id: str) -> Json:
        """Take a file off a vector store. It stays a file."""
        await gateway.recorder.read(gateway.shelves.take(tenant, store_id, file_id))
        return dialect.deleted("vector_store.file.deleted", file_id)


def _batches(router: APIRouter, gateway: "Gateway") -> None:
    @router.post("/{store_id}/file_batches")
    async def put_together(tenant: Tenant, store_id: str, body: dialect.NewBatch) -> Json:
        """Put several files on a vector store at once."""
        batch_id = await gateway.recorder.read(gateway.shelves.put(tenant, store_id, body.puts(), together=True))
        assert batch_id is not None
        return dialect.batch(await gateway.recorder.read(gateway.shelves.batch(tenant, store_id, batch_id)))

    @router.get("/{store_id}/file_batches/{batch_id}")
    async def get(tenant: Tenant, store_id: str, batch_id: str) -> Json:
        """How far they are."""
        return dialect.batch(await gateway.recorder.read(gateway.shelves.batch(tenant, store_id, batch_id)))

    @router.post("/{store_id}/file_batches/{batch_id}/cancel")
    async def cancel(tenant: Tenant, store_id: str, batch_id: str) -> Json:
        """Leave undone what is not done yet."""
        return dialect.batch(await gateway.recorder.read(gateway.shelves.cancel(tenant, store_id, batch_id)))

    @router.get("/{store_id}/file_batches/{batch_id}/files")
    async def list_files(
        tenant: Tenant,
        store_id: str,
        batch_id: str,
        limit: Limit = 20,
        order: Order = "desc",
        after: Cursor = None,
        before: Cursor = None,
        status: Annotated[FileStatus | None, Query(alias="filter")] = None,
    ) -> Json:
        """Its files, the newest first."""
        await gateway.recorder.read(gateway.shelves.batch(tenant, store_id, batch_id))
        found = await gateway.recorder.read(gateway.shelves.files(tenant, store_id, batch_id))
        told = [dialect.shelved(file) for file in found if status in {None, file.status}]
        return dialect.listed(told, limit=limit, order=order, after=after, before=before)


def apart(chunks: tuple[Chunk, ...]) -> list[str]:
    """The texts of chunks, in their order, without what one repeats of the one before it."""
    texts, end = [], 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.number):
        texts.append(chunk.text[max(0, end - chunk.start) :])
        end = chunk.end
    return [text for text in texts if text]
