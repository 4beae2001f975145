"""The library of a server anywhere: documents are uploaded over HTTP, several at the same time."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from http import HTTPStatus
from typing import Any

import httpx

from app.errors import InvalidRequest, MindFuError, Unavailable
from app.ingestion import Held, Outcome, held_of, metadata_of, refused, taken
from app.messages import Added, Document, Metadata
from app.sources import Source, read

MOST_BYTES = 2**28  # that are read of one document; the server has a limit of its own
PAGE = 1000  # documents of one request
TRIES = 6
LONGEST_WAIT_S = 30.0
AGAIN = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY})
NOT_FOR_US = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class Answered(MindFuError):
    """What the server answers instead of doing it."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message, http_status)
        self.message, self.http_status = message, http_status

    def __str__(self) -> str:
        return self.message


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
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(30.0, read=600.0)  # a large document takes minutes
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._collection, self._metadata, self._uploads, self._private = collection, metadata or {}, uploads, private
        self._sleep = sleep

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
        """The answer. Waits and asks again while the server is busy or away. Raises Answered, Unavailable."""
        reason, pause = "", 1.0
        for tried in range(1, TRIES + 1):
            try:
                answer = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                reason = f"{self._http.base_url} does not answer ({str(error) or type(error).__name__})"
            except httpx.InvalidURL as error:
                raise InvalidRequest(f"'{self._http.base_url}' is no URL of a server: {error}", "url") from error
            else:
                if answer.status_code not in AGAIN:
                    return _understood(answer)
                reason = _message(answer)
                pause = max(pause, float(answer.headers.get("retry-after", 0)))
            if tried < TRIES:
                self._sleep(min(pause, LONGEST_WAIT_S))
                pause *= 2
        raise Unavailable("server", reason)


def _understood(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_success:
        found: dict[str, Any] = answer.json()
        return found
    raise Answered(_message(answer), answer.status_code)


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"
