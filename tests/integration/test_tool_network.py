"""What the network tools reach, and what not."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from app.tools.context import Context
from app.tools.failures import ToolFailed
from app.tools.network import Network
from app.tools.web import lookup_hostname, measure_http_latency

pytestmark = pytest.mark.integration
ANY: Any = None


class Away(BaseHTTPRequestHandler):
    """Redirects to where it was not asked for, and notes who came."""

    seen: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.seen.append(self.path)
        self.send_response(302)
        self.send_header("Location", "/secret")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    """Of a web server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Away) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def closed() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def context(**network: Any) -> Context:
    return Context(ANY, Network(**network), ANY)


def test_a_private_server_is_reached_where_that_is_allowed(port, closed):
    """By HTTP where nothing speaks HTTPS; its redirect is told by its status, and not followed."""
    Away.seen.clear()
    told = measure_http_latency(context(private=True, https=closed, http=port), "127.0.0.1")
    assert (told["status"], told["url"], Away.seen) == (302, f"http://127.0.0.1:{port}/", ["/"])
    assert 0 < told["latency_ms"] < 5000
    found = lookup_hostname(context(private=True, https=closed, http=port), "localhost")
    assert found["ip"] in {"127.0.0.1", "::1"}
    assert found["ping_ms"] > 0


@pytest.mark.parametrize(
    "hostname",
    [
        "localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "::1", "::ffff:127.0.0.1",
        "::7f00:1", "64:ff9b::7f00:1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1",
        "fd00::1", "fe80::1", "168.63.129.16", "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_what_only_this_machine_can_reach_is_refused_however_it_is_written(port, hostname):
    """Before anything is sent."""
    Away.seen.clear()
    for tool in (lookup_hostname, measure_http_latency):
        with pytest.raises(ToolFailed, match=r"not a public address|no host name|no address"):
            tool(context(http=port), hostname)
    assert Away.seen == []


@pytest.mark.parametrize(
    "hostname",
    ["http://x", "a b", "a/b", "user@host", "host:80", "x\r\nHost: y", "", "-x", "a" * 254, "x?y", "[::1]", "é.ch"],
)
def test_what_is_no_host_name_is_refused(hostname):
    """A path, a port, a user or a header is none."""
    with pytest.raises(ToolFailed, match="is no host name"):
        lookup_hostname(context(), hostname)


def test_the_address_that_was_checked_is_the_one_that_is_reached(port, closed, monkeypatch):
    """A name is asked for once: one that points elsewhere the second time gains nothing."""
    answers = iter(["127.0.0.1"])
    real = socket.getaddrinfo

    def rebinding(host: Any, *more: Any, **named: Any) -> Any:
        return real(next(answers) if host == "rebind.example" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    told = measure_http_latency(context(private=True, https=closed, http=port), "rebind.example")
    assert told["status"] == 302


def test_a_server_that_says_nothing_is_given_up(closed):
    """As is one that speaks no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        impatient = context(private=True, timeout_s=0.2, https=closed, http=silent.getsockname()[1])
        with pytest.raises(ToolFailed, match="did not answer"):
            measure_http_latency(impatient, "127.0.0.1")
    with pytest.raises(ToolFailed, match="did not answer"):
        measure_http_latency(context(private=True, https=closed, http=closed), "127.0.0.1")
