"""The Librarian deployment: takes documents in, lists them, lets them go.

What a document leaves, in the order of writing: a row in PostgreSQL that says `ingesting`, its bytes in a file, its
chunks in the vector store, `ready` in the row. It goes the other way round. So after a crash a row tells what is left
to clear away, which `recover` does at start and whenever clearing failed.

Once begun, taking in and letting go run to their end even if the client leaves. The retriever is the only collaborator.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ray.serve.handle import DeploymentHandle

from app.chunking import cut, cut_as
from app.documents import Documents, Held, check_metadata
from app.errors import InvalidRequest, MindFuError, Misconfigured, NotFound, TooLarge
from app.files import Files
from app.ids import new_id
from app.memory import Memory
from app.messages import Added, Chunk, Document, Index, Metadata, NewText
from app.postgres import open_pool
from app.prepared import Prepared, index_of, new_document
from app.reading import Reader
from app.reading_text import clean, clean_title, first_heading
from app.settings import DocumentSettings, Secrets
from app.vectors import Floats, check_name
from deployments.remembering import Remembering
from deployments.retriever import Handle
from deployments.shelving import Shelving

UNCUT_CHARS = 8000  # of a text that stays one passage
TEXT_TITLE_CHARS = 80  # of a title that is a text's first line
RETRY_S = 5.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Indexes(Protocol):
    """What the librarian needs of the retriever."""

    async def index(self, index: Index, vectors: Floats | None = None) -> int:
        """Make a document's chunks findable. Idempotent. vectors: of its passages, where they are known."""

    async def forget(self, collection: str, document_id: str, tenant: str) -> None:
        """Make them unfindable. Idempotent."""


class Librarian:
    """Keeps the documents of all tenants. Any number of replicas may share a home and a database.

    home: the folder of the files, and of the embedded PostgreSQL. postgres_url: None for what the environment says.
    Must be made where an event loop runs: it opens its stores and recovers in the background.
    """

    def __init__(
        self,
        retriever: DeploymentHandle | Indexes,
        settings: DocumentSettings,
        home: Path,
        postgres_url: str | None = None,
    ) -> None:
        self._retriever: Indexes = (
            Handle("retriever", retriever) if isinstance(retriever, DeploymentHandle) else retriever
        )
        self._settings = settings
        self._reader = Reader(settings)
        self._files = Files(home)
        self._tasks: set[asyncio.Task[Any]] = set()
        secret = Secrets.from_env().postgres_url
        url = postgres_url or (secret.get_secret_value() if secret else None)
        self._pool = asyncio.create_task(open_pool(url, home))
        self._store = asyncio.create_task(self._open_documents())
        self._counts = dict.fromkeys(("documents", "chunks", "failures", "deletions", "reading_s", "indexing_s"), 0.0)
        self._recovery = asyncio.Lock()
        self._leftovers = asyncio.Event()
        self._leftovers.set()  # of earlier processes, perhaps
        self._clearing = asyncio.create_task(self._clear_leftovers())
        self._behind = (asyncio.create_task(self._remember()), asyncio.create_task(self._shelve()))

    async def check_health(self) -> None:
        """Return: this process answers. PostgreSQL has its own line in /health."""

    async def close(self) -> None:
        """Finish what is begun, then let PostgreSQL go."""
        self._clearing.cancel()
        for work in self._behind:
            work.cancel()
        await asyncio.gather(*self._behind, *self._tasks, return_exceptions=True)
        await (await self._store).close()

    async def add_text(self, tenant: str, text: NewText) -> Added:
        """Take in a text, or find that the collection has it. Raises InvalidRequest, TooLarge, Unavailable."""
        check_name(text.collection)
        check_metadata(text.metadata)
        content = clean(text.content)
        data = content.encode()
        self._check_size(len(data), len(content))
        key = (tenant, text.collection, hashlib.sha256(data).hexdigest())
        if known := await (await self._documents()).of_content(*key):
            return Added(document=known, duplicate=True)
        chunks = await asyncio.to_thread(self._cut, content) if text.chunk else _uncut(content)
        if not chunks:
            raise InvalidRequest("content has no text.", "content")
        first_line = clean_title(chunks[0].text.split("\n")[0][:TEXT_TITLE_CHARS])
        document = Document(
            id=new_id("doc_"),
            tenant=tenant,
            collection=text.collection,
            title=clean_title(text.title) or first_heading(content) or first_line or "untitled",
            media_type="text/plain",
            sha256=key[2],
            size=len(data),
            chunks=len(chunks),
            created_at=datetime.now(UTC),
            metadata=text.metadata,
        )
        return await self._to_its_end(self._take_in(document, data, chunks))

    async def add_file(
        self,
        tenant: str,
        collection: str,
        name: str,
        media_type: str | None,
        data: bytes,
        title: str | None = None,
        metadata: Metadata | None = None,
        sizes: tuple[int, int] | None = None,
    ) -> Added:
        """Take in a file, or find that the collection has it. name, media_type: as the sender gave them. title: None
        takes the one that the file has. sizes: of a chunk and of the overlap of two, in characters, None as the
        settings say. Positional, as calls between deployments are.

        Raises InvalidRequest, TooLarge, UnsupportedMedia, UnreadableDocument, Unavailable.
        """
        check_name(collection)
        check_metadata(metadata or {})
        key = (tenant, collection, hashlib.sha256(data).hexdigest())
        if known := await (await self._documents()).of_content(*key):
            return Added(document=known, duplicate=True)
        with self._counted("reading_s"):
            read = await self._reader.read(data, name=name, media_type=media_type, sizes=sizes)
        document = new_document(tenant, collection, name, data, read, metadata or {}, title)
        return await self._to_its_end(self._take_in(document, data, read.chunks))

    async def add_prepared(self, prepared: Sequence[Prepared]) -> tuple[Added | MindFuError, ...]:
        """Take in documents that were read and embedded elsewhere, in the way of all documents. An answer for each."""
        takes = [self._to_its_end(self._take_in(one.document, one.data, one.chunks, one.vectors)) for one in prepared]
        done = await asyncio.gather(*takes, return_exceptions=True)
        if bug := next((one for one in done if not isinstance(one, Added | MindFuError)), None):
            raise bug
        return tuple(one for one in done if isinstance(one, Added | MindFuError))

    async def stats(self) -> dict[str, float]:
        """What was done since the start: documents and chunks taken in, failures, deletions, seconds that they took."""
        return dict(self._counts)

    async def settings(self) -> DocumentSettings:
        """What it was made with, so that others can read and cut as it does."""
        return self._settings

    async def get(self, tenant: str, document_id: str) -> Document:
        """One document. Raises NotFound, for one that is not ready as well."""
        document, state = await (await self._documents()).get(tenant, document_id)
        if state != "ready":
            raise NotFound("document", document_id)
        return document

    async def list(
        self, tenant: str, collection: str | None = None, limit: int = 100, after: str | None = None
    ) -> tuple[Document, ...]:
        """A page of documents, newest first. collection: None for all. after: the id of the last one seen."""
        if collection is not None:
            check_name(collection)
        return await (await self._documents()).newest(tenant, collection, limit=limit, after=after)

    async def delete(self, tenant: str, document_id: str) -> Document:
        """Forget a document, its passages first. One that is being taken in is waited for. Raises NotFound.

        After an Unavailable it is no longer listed, and goes as soon as what was away is back.
        """
        document, _ = await (await self._documents()).get(tenant, document_id)
        return await self._to_its_end(self._delete(document))

    async def recover(self) -> int:
        """Finish interrupted deletions, clear what was half taken in. Returns how many. Raises the last failure, after
        all others were tried.
        """
        cleared = 0
        failure: MindFuError | None = None
        documents = await self._documents()
        async with self._recovery:
            for row in await documents.unfinished():
                try:
                    cleared += await self._recover_one(documents, row.document)
                except MindFuError as error:
                    failure = error
        if failure is not None:
            raise failure
        return cleared

    async def _recover_one(self, documents: Documents, document: Document) -> bool:
        """Whether it was unfinished and nobody's."""
        async with documents.hold_idle(document) as held:
            row = await held.row() if held else None
            if held is None or row is None or row.state == "ready":
                return False
            await self._let_go(held, row.document)
            return True

    async def _take_in(
        self, document: Document, data: bytes, chunks: tuple[Chunk, ...], vectors: Floats | None = None
    ) -> Added:
        documents = await self._documents()
        async with documents.hold(document) as held:
            row = await held.row()
            if row is not None and row.state == "ready":  # somebody else was faster
                return Added(document=row.document, duplicate=True)
            if row is not None and row.state == "deleting":
                await self._let_go(held, row.document)
            document = await held.begin(document)
            try:
                with self._counted("indexing_s"):
                    await asyncio.to_thread(self._files.keep, document, data)
                    await self._retriever.index(index_of(document, chunks), vectors)
                    await held.move(document, "ready")
            except Exception:
                await self._discard(held, document)
                raise
            self._counts["documents"] += 1
            self._counts["chunks"] += len(chunks)
            return Added(document=document, duplicate=False)

    async def _delete(self, document: Document) -> Document:
        documents = await self._documents()
        async with documents.hold(document) as held:
            row = await held.row()
            if row is None or row.document.id != document.id:
                raise NotFound("document", document.id)
            try:
                await self._let_go(held, document)
            except Exception:
                self._leftovers.set()
                raise
            self._counts["deletions"] += 1
            return document

    async def _let_go(self, held: Held, document: Document) -> None:
        await held.move(document, "deleting")
        await self._retriever.forget(document.collection, document.id, document.tenant)
        await asyncio.to_thread(self._files.drop, document)
        await held.remove(document)

    async def _discard(self, held: Held, document: Document) -> None:
        """Leave nothing of an attempt that failed. Its own failure is the one to report."""
        try:
            await self._let_go(held, document)
        except Exception as error:  # noqa: BLE001 – see above; the row stays, and recovery goes by it
            logger.warning("Clearing %s away failed, and will be tried again: %s", document.id, error)
            self._leftovers.set()

    async def _clear_leftovers(self) -> None:
        while await self._leftovers.wait():
            self._leftovers.clear()
            try:
                if cleared := await self.recover():
                    logger.info("Cleared %d unfinished documents away.", cleared)
            except Misconfigured:
                raise  # start-up refuses, and every call says so
            except Exception as error:  # noqa: BLE001 – a loop's edge
                logger.warning("Clearing unfinished documents away failed, and will be tried again: %s", error)
                self._leftovers.set()
                await asyncio.sleep(RETRY_S)

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Add the time of the block, and a failure where it fails."""
        started = time.perf_counter()
        try:
            yield
        except Exception:
            self._counts["failures"] += 1
            raise
        finally:
            self._counts[name] += time.perf_counter() - started

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Await it, and let it finish if we are cancelled. In a context of its own: Serve cancels the calls that a
        cancelled request has made.
        """
        task = asyncio.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.info("A document was not taken in or let go: %s", error)  # the caller, if there still is one, has it

    async def _remember(self) -> None:
        """What was said in conversations is taken in as well, in the background."""
        await Remembering(Memory(await asyncio.shield(self._pool)), self._retriever, self._cut).forever()

    async def _shelve(self) -> None:
        """What is put on vector stores is taken in, in the background."""
        await Shelving(await asyncio.shield(self._pool), self).forever()

    async def _open_documents(self) -> Documents:
        return Documents(await asyncio.shield(self._pool))

    async def _documents(self) -> Documents:
        return await asyncio.shield(self._store)

    def _cut(self, text: str) -> tuple[Chunk, ...]:
        settings = self._settings
        kind = cut_as("markdown" if first_heading(text) else "text", settings.chunking)
        return cut(text, kind=kind, chunk_chars=settings.chunk_chars, overlap_chars=settings.overlap_chars)

    def _check_size(self, size: int, chars: int) -> None:
        limits = self._settings
        if size > limits.max_bytes:
            raise TooLarge("content", size, limits.max_bytes, "bytes", "documents.max_bytes")
        if chars > limits.max_text_chars:
            raise TooLarge("content", chars, limits.max_text_chars, "characters", "documents.max_text_chars")


def _uncut(text: str) -> tuple[Chunk, ...]:
    """The whole text as one chunk, or none."""
    piece = text.strip()
    if len(piece) > UNCUT_CHARS:
        raise InvalidRequest(
            f'content has {len(piece)} characters, and with "chunk": false at most {UNCUT_CHARS} are kept as one '
            "passage. Send less, or let it be cut.",
            "content",
        )
    start = text.find(piece)
    return (Chunk(number=0, text=piece, start=start, end=start + len(piece)),) if piece else ()
