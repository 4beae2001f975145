"""Fetch from the web, with a limit on the size and none of what only this machine can reach.

A list of URLs comes from anywhere, and a page may redirect anywhere: without `private`, addresses that are not public
(this machine, the local network, a cloud's metadata service) are refused. Names are resolved once and the connection
goes to the address that was checked, so a name cannot point elsewhere the second time. Proxies are not used: through
one nobody could tell where a connection ends.
"""

import socket
import time
from collections.abc import Iterable
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import httpcore

from app.errors import TooLarge, UnreadableDocument

REDIRECTS = 5
TIMEOUT_S = 30.0  # without a byte
TOTAL_S = 300.0
NAT64, UNICAST = ip_network("64:ff9b::/96"), ip_network("2000::/3")  # UNICAST: all of IPv6 that is public today
AZURE = ip_address("168.63.129.16")  # its metadata, at an address that looks like any other
HEADERS = [("User-Agent", "mindfu"), ("Accept", "*/*"), ("Accept-Encoding", "identity")]


class Refused(Exception):
    """An address that must not be reached."""


class Fetched(NamedTuple):
    """The body of an answer, and its type as the server says."""

    data: bytes
    media_type: str | None


def fetch(url: str, *, max_bytes: int, private: bool = False, context: Any = None) -> Fetched:
    """What an HTTP server answers. context: an ssl.SSLContext instead of the usual one.

    Raises TooLarge, and UnreadableDocument for all that goes wrong on the way.
    """
    backend = _Checked(private=private)
    with httpcore.ConnectionPool(network_backend=backend, ssl_context=context) as pool:
        try:
            return _fetch(pool, url, max_bytes)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, Refused) as error:
            raise UnreadableDocument(url, str(error) or type(error).__name__) from error
        except (httpcore.UnsupportedProtocol, ValueError, UnicodeError) as error:
            raise UnreadableDocument(url, f"it is no URL that can be fetched: {error}") from error


def _fetch(pool: httpcore.ConnectionPool, url: str, max_bytes: int) -> Fetched:
    ends_at = time.monotonic() + TOTAL_S
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_S)
    here = url
    for _ in range(REDIRECTS + 1):
        with pool.stream("GET", here, headers=HEADERS, extensions={"timeout": timeouts}) as answer:
            location = _header(answer, b"location")
            if answer.status not in {301, 302, 303, 307, 308} or location is None:
                return Fetched(_body(answer, url, max_bytes, ends_at), _header(answer, b"content-type"))
            here = urljoin(here, location)
            if urlsplit(here).scheme not in {"http", "https"}:
                raise Refused(f"it redirects to {here[:200]}")
    raise Refused(f"it redirects more than {REDIRECTS} times")


def _body(answer: httpcore.Response, url: str, max_bytes: int, ends_at: float) -> bytes:
    if answer.status != HTTPStatus.OK:
        raise Refused(f"the server answered {answer.status}")
    if (encoding := _header(answer, b"content-encoding")) not in {None, "identity"}:
        raise Refused(f"it came compressed ({encoding}), which was not asked for")
    pieces, size = [], 0
    for piece in answer.iter_stream():
        size += len(piece)
        if size > max_bytes:
            raise TooLarge(f"'{url}'", size, max_bytes, "bytes or more", "documents.max_bytes")
        if time.monotonic() > ends_at:
            raise Refused(f"it did not come within {TOTAL_S:.0f} s")
        pieces.append(piece)
    return b"".join(pieces)


def _header(answer: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in answer.headers if key.lower() == name), None)


class _Checked(httpcore.NetworkBackend):
    """Connects to public addresses only, unless private ones are allowed."""

    def __init__(self, *, private: bool) -> None:
        self._private, self._under = private, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        address = resolved(host, port, private=self._private)
        return self._under.connect_tcp(address, port, timeout, local_address, socket_options)


def resolved(host: str, port: int, *, private: bool) -> str:
    """The address of a host. Raises Refused where none of them may be reached, or there is none."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise Refused(f"there is no address of '{host}'") from error
    allowed = [address for address in found if private or is_public(address)]
    if not allowed:
        raise Refused(f"'{host}' is at {found[0]}, which is not a public address; --allow-private allows it")
    return allowed[0]


def is_public(address: str) -> bool:
    """Whether anybody on the internet can reach it. IPv4 in IPv6, however it is written, is judged as IPv4."""
    plain = ip_address(address.split("%", maxsplit=1)[0])
    if plain.version == 6:
        inner = plain.ipv4_mapped or plain.sixtofour
        if inner is not None:
            plain = inner
        elif plain in NAT64:
            plain = ip_address(int(plain) & 0xFFFFFFFF)
        elif plain not in UNICAST:  # ::127.0.0.1, site-local, a NAT64's own prefix: Python counts some as public
            return False
    if plain == AZURE:
        return False
    return plain.is_global and not plain.is_multicast
