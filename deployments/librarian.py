"""The Librarian deployment: takes documents in, lists them, lets them go.

What a document leaves, in the order of writing: a row in PostgreSQL that says `ingesting`, its bytes in a file, its
chunks in the vector store, `ready` in the row. It goes the other way round. So after a crash a row tells what is left
to clear away, which `recover` does at start and whenever clearing failed.

Once begun, taking in and letting go run to their end even if the client leaves. The retriever is the only collaborator.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Coroutine
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ray.serve.handle import DeploymentHandle

from app.chunking import cut
from app.documents import Documents, Held, check_metadata, new_id
from app.errors import InvalidRequest, MindFuError, NotFound, TooLarge
from app.files import Files
from app.messages import Added, Chunk, Document, Index, Metadata, NewText
from app.postgres import open_pool
from app.reading import Reader
from app.reading_text import clean, clean_title, first_heading
from app.settings import DocumentSettings, Secrets
from app.vectors import check_name
from deployments.retriever import Handle

UNCUT_CHARS = 8000  # of a text that stays one passage
TEXT_TITLE_CHARS = 80  # of a title that is a text's first line
WORKING = 4  # documents taken in or let go at a time: each holds one of the pool's eight connections
RETRY_S = 5.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Indexes(Protocol):
    """What the librarian needs of the retriever."""

    async def index(self, index: Index) -> int:
        """Make a document's chunks findable. Idempotent."""

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
        self._retriever: Indexes = Handle("retriever", retriever) if _is_handle(retriever) else retriever
        self._settings = settings
        self._reader = Reader(settings)
        self._files = Files(home)
        self._working = asyncio.Semaphore(WORKING)
        self._tasks: set[asyncio.Task[Any]] = set()
        secret = Secrets.from_env().postgres_url
        url = postgres_url or (secret.get_secret_value() if secret else None)
        self._pool = asyncio.ensure_future(open_pool(url, home))
        self._leftovers = asyncio.Event()
        self._leftovers.set()  # of earlier processes, perhaps
        self._recovering = asyncio.create_task(self._recover_again_and_again())

    async def check_health(self) -> None:
        """Return: this process answers. PostgreSQL has its own line in /health."""

    async def close(self) -> None:
        """Finish what is begun, then let PostgreSQL go."""
        self._recovering.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await (await self._pool).close()

    async def add_text(self, tenant: str, text: NewText) -> Added:
        """Take in a text. Raises InvalidRequest and TooLarge."""
        content = clean(text.content)
        size = len(content.encode())
        if size > self._settings.max_bytes:
            raise TooLarge("content", size, self._settings.max_bytes, "bytes", "documents.max_bytes")
        if len(content) > self._settings.max_text_chars:
            limit = self._settings.max_text_chars
            raise TooLarge("content", len(content), limit, "characters", "documents.max_text_chars")
        chunks = await asyncio.to_thread(self._cut, content) if text.chunk else _uncut(content)
        if not chunks:
            raise InvalidRequest("content has no text.", "content")
        title = clean_title(text.title) or first_heading(content) or clean_title(chunks[0].text.split("\n")[0]) or ""
        data = content.encode()
        document = self._new(tenant, text.collection, data, text.metadata).model_copy(
            update={"title": title, "media_type": "text/plain", "chunks": len(chunks)}
        )
        return await self._to_its_end(self._take_in(document, data, chunks))
