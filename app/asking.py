"""Requests to a server elsewhere, with patience: asked again while it is busy or away, and no longer than makes sense.

    asking = Asking("http://127.0.0.1:11434", key)
    asking.ask("GET", "/health").json()

Where a server cannot be reached, or says that it is busy (429, 502, 503, 504), the same request is sent again after 1,
2, 4, 8 and 16 s, or after as long as it asks for in `Retry-After`. One that may have been worked on already is only
sent again where nothing can happen twice by that.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Self

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from app.errors import InvalidRequest, MindFuError, Unavailable

BUSY = frozenset({
    HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
})  # fmt: skip
TRIES = 6  # with five pauses: 1, 2, 4, 8, 16 s
LONGEST_PAUSE_S = 60.0  # a server that asks for a longer one is not waited for
CONNECT_S = 5.0
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})  # RFC 9110, 9.2.2
BACKOFF = wait_exponential(multiplier=1, max=16)


class Answered(MindFuError):
    """What the server answers instead of doing it."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message, http_status)
        self.message, self.http_status = message, http_status

    def __str__(self) -> str:
        return self.message


class NotNow(Unavailable):
    """A failure that may pass. pause_s: that the server asked for."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__("server", reason)
        self.args = (reason, pause_s)
        self.pause_s = pause_s

    def __str__(self) -> str:
        return f"The server is not available: {self.reason}."


class Asking:
    """One server. url: with or without /v1. timeout_s: that it may be silent, once it was reached.

    waiting: is told the reason and the seconds before each pause.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        waiting: Callable[[str, float], object] = lambda _reason, _pause_s: None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.timeout_s = url.rstrip("/").removesuffix("/v1"), timeout_s
        self._waiting, self._sleep = waiting, sleep
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"'{url}' is no URL of a server: {error}", "url") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool | None = None,
        tries: int = TRIES,
        accept: int | None = None,
        **request: Any,
    ) -> httpx.Response:
        """A successful answer. repeatable: nothing happens twice if it is sent twice; None goes by the method.

        accept: a status that is an answer, too. request: as httpx takes it. Raises Unavailable; Answered where the
        server refuses.
        """
        again = method in REPEATABLE if repeatable is None else repeatable
        return self._retrying(tries)(self._once, method, path, stream=False, again=again, accept=accept, **request)

    @contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """The same with a body that is still to be read. Its end that never comes is Unavailable, too."""
        again = method in REPEATABLE
        answer = self._retrying(TRIES)(self._once, method, path, stream=True, again=again, accept=None, **request)
        try:
            yield answer
        except httpx.TransportError as error:
            raise self._failed(error) from error
        finally:
            answer.close()

    def _retrying(self, tries: int) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(NotNow),
            wait=_pause_s,
            stop=stop_after_attempt(tries),
            sleep=self._sleep,
            before_sleep=self._tell,
            reraise=True,
        )

    def _once(
        self, method: str, path: str, *, stream: bool, again: bool, accept: int | None, **request: Any
    ) -> httpx.Response:
        try:
            answer = self._http.send(self._http.build_request(method, path, **request), stream=stream)
            if not answer.is_success:
                answer.read()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InvalidRequest(f"'{self.url}' is no URL of a server: {error}", "url") from error
        except NEVER_SENT as error:
            raise NotNow(f"{self.url} does not answer ({_said(error)})") from error
        except httpx.TransportError as error:
            failed = self._failed(error)
            raise (NotNow(failed.reason) if again else failed) from error
        if answer.is_success or answer.status_code == accept:
            return answer
        answer.close()
        if answer.status_code not in BUSY:
            raise Answered(_message(answer), answer.status_code)
        raise _busy(answer)

    def _failed(self, error: httpx.TransportError) -> Unavailable:
        if isinstance(error, httpx.ReadTimeout):
            silent_s = error.request.extensions["timeout"]["read"]
            return Unavailable("server", f"{self.url} was silent for {silent_s:g} s")
        return Unavailable("server", f"{self.url} does not answer ({_said(error)})")

    def _tell(self, state: RetryCallState) -> None:
        assert state.outcome
        assert state.next_action
        failure = state.outcome.exception()
        assert isinstance(failure, NotNow)
        self._waiting(failure.reason, state.next_action.sleep)


def _pause_s(state: RetryCallState) -> float:
    assert state.outcome
    failure = state.outcome.exception()
    assert isinstance(failure, NotNow)
    return max(BACKOFF(state), failure.pause_s)


def _busy(answer: httpx.Response) -> Unavailable:
    pause_s = retry_after_s(answer.headers.get("retry-after", ""))
    if pause_s > LONGEST_PAUSE_S:
        return Unavailable("server", _message(answer), pause_s)
    return NotNow(_message(answer), pause_s)


def retry_after_s(value: str, now: datetime | None = None) -> float:
    """The seconds of a Retry-After header: a number, or a date (RFC 9110, 10.2.3). 0 where it says nothing."""
    if value.strip().isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
