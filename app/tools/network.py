"""What the network tools may reach: public addresses, unless private ones are allowed.

A name is resolved once, and the connection goes to the address that was checked, so no name can point elsewhere the
second time. No redirect is followed, nothing is sent but a HEAD, and of the answer only its head is read.
"""

import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

import httpcore

from app.fetching import is_public
from app.tools.failures import ToolFailed

HOSTNAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_-]+)*\.?")
HEADERS = [("User-Agent", "mindfu"), ("Accept", "*/*"), ("Accept-Encoding", "identity"), ("Connection", "close")]
FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError, OSError)


class Answered(NamedTuple):
    """How a web server answered a HEAD. latency_s: from the start of the connection to the answer's head."""

    url: str
    status: int
    latency_s: float


@dataclass(frozen=True)
class Network:
    """private: addresses that only this machine or its network can reach are allowed, too."""

    private: bool = False
    timeout_s: float = 5.0
    https: int = 443
    http: int = 80

    def resolve(self, hostname: str) -> str:
        """The one address that is used for a host. Raises ToolFailed where there is none that may be reached."""
        if not HOSTNAME.fullmatch(hostname) and not _is_address(hostname):
            raise ToolFailed(f"'{hostname[:100]}' is no host name. Give a name like 'example.org', without https://.")
        try:
            found = [str(info[4][0]) for info in socket.getaddrinfo(hostname, self.https, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            raise ToolFailed(f"There is no address of '{hostname}'.") from error
        allowed = [address for address in found if self.private or is_public(address)]
        if not allowed:
            raise ToolFailed(f"'{hostname}' is at {found[0]}, which is not a public address: it may not be reached.")
        return allowed[0]

    def ping(self, address: str) -> float | None:
        """Seconds of a TCP handshake, one that is refused as well; None: nothing answered."""
        for port in (self.https, self.http):
            started = time.perf_counter()
            try:
                socket.create_connection((address, port), self.timeout_s).close()
            except ConnectionRefusedError:
                pass  # that was an answer too
            except OSError:
                continue
            return time.perf_counter() - started
        return None

    def head(self, hostname: str) -> Answered:
        """Ask for the head of `/`: by HTTPS, and where nothing listens there by HTTP. Raises ToolFailed."""
        address = self.resolve(hostname)
        failure: Exception | None = None
        for scheme, port in (("https", self.https), ("http", self.http)):
            host = f"[{hostname}]" if ":" in hostname else hostname
            url = f"{scheme}://{host}:{port}/"
            try:
                return self._head(url, address)
            except httpcore.ConnectError as error:
                failure = error
            except FAILURES as error:
                raise ToolFailed(f"{url} did not answer: {error or type(error).__name__}.") from error
        raise ToolFailed(f"'{hostname}' did not answer: {failure}.") from failure

    def _head(self, url: str, address: str) -> Answered:
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout_s)
        started = time.perf_counter()
        with (
            httpcore.ConnectionPool(network_backend=_To(address)) as pool,
            pool.stream("HEAD", url, headers=HEADERS, extensions={"timeout": timeouts}) as answer,
        ):
            return Answered(url, answer.status, time.perf_counter() - started)


class _To(httpcore.NetworkBackend):
    """Connects to one address, whatever is asked for."""

    def __init__(self, address: str) -> None:
        self._address, self._under = address, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 – it was resolved already
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return self._under.connect_tcp(self._address, port, timeout, local_address, socket_options)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
