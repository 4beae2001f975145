"""The library of a server anywhere: documents are uploaded over HTTP, several at the same time."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from http import HTTPStatus
from typing import Any

import httpx

from app.asking import Answered, Asking
from app.errors import MindFuError, Unavailable
from app.ingestion import Held, Outcome, held_of, metadata_of, refused, taken
from app.messages import Added, Document, Metadata
from app.sources import Source, read

MOST_BYTES = 2**28  # that are read of one document; the server has a limit of its own
PAGE = 1000  # documents of one request
SILENT_S = 600.0  # a large document takes minutes
NOT_FOR_US = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class Remote:
    """One collection of the server at url. uploads: at the same time. private: see app/fetching.py."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        collection: str = "default",
        metadata: Metadata | None = None,
        uploads: int = 4,
        private: bool = False,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._asking = Asking(url, key, timeout_s=SILENT_S, transport=transport, sleep=sleep)
        self._collection, self._metadata, self._uploads, self._private = collection, metadata or {}, uploads, private

    def held(self) -> Iterator[Held]:
        """See app/ingestion.py."""
        after: str | None = None
        while True:
            asked = {"collection": self._collection, "limit": str(PAGE)} | ({"after": after} if after else {})
            page = self._ask("GET", "/v1/documents", params=asked)["data"]
            yield from (held_of(Document.model_validate(one)) for one in page)
            if len(page) < PAGE:
                return
            after = page[-1]["id"]

    def send(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        """See app/ingestion.py. No more are in memory than are uploaded at the same time. Raises Unavailable where the
        server stays away, Answered where the key is not good for it.
        """
        waiting = iter(sources)
        with ThreadPoolExecutor(self._uploads, "upload") as pool:
            running: set[Future[Outcome]] = set()
            try:
                while True:
                    while len(running) < self._uploads and (source := next(waiting, None)):
                        running.add(pool.submit(self._send, source, known))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def delete(self, document: str) -> None:
        """See app/ingestion.py."""
        try:
            self._ask("DELETE", f"/v1/documents/{document}")
        except Answered as error:
            if error.http_status != HTTPStatus.NOT_FOUND:
                raise

    def _send(self, source: Source, known: Mapping[str, str]) -> Outcome:
        try:
            content = read(source, max_bytes=MOST_BYTES, private=self._private)
            if there := known.get(hashlib.sha256(content.data).hexdigest()):
                return Outcome(source.uri, "duplicate", document=there)
            metadata = json.dumps(metadata_of(source, self._metadata))
            fields = {"collection": self._collection, "metadata": metadata}
            media_type = content.media_type or "application/octet-stream"
            answer = self._ask(
                "POST",
                "/v1/documents/upload",
                data=fields,
                files={"file": (content.name, content.data, media_type)},
            )
            duplicate = answer.pop("duplicate")
            return taken(source, Added(document=Document.model_validate(answer), duplicate=duplicate))
        except Unavailable:
            raise
        except Answered as error:
            if error.http_status in NOT_FOR_US:
                raise
            return refused(source, error, error.http_status)
        except MindFuError as error:
            return refused(source, error)

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The answer. A document that comes twice is a duplicate, so everything may be asked again."""
        found: dict[str, Any] = self._asking.ask(method, path, repeatable=True, **request).json()
        return found
