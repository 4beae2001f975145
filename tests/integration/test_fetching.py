"""Web pages are fetched with limits, and from public addresses only."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.errors import TooLarge, UnreadableDocument
from app.fetching import fetch, is_public
from app.sources import Source, read

pytestmark = pytest.mark.integration


class Pages(BaseHTTPRequestHandler):
    """A small web."""

    def do_GET(self) -> None:
        status, headers, body = {
            "/page.php": (200, {"Content-Type": "text/html; charset=utf-8"}, b"<h1>Hello</h1>"),
            "/moved": (302, {"Location": "/page.php"}, b""),
            "/round": (302, {"Location": "/round"}, b""),
            "/away": (302, {"Location": "file:///etc/passwd"}, b""),
            "/endless": (200, {}, b""),
            "/gzip": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 10**6)),
        }.get(self.path, (404, {}, b"no"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/endless":
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(b"x" * 2**16)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """Its URL, at a private address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_is_fetched_through_redirects(web):
    """With its type."""
    assert fetch(f"{web}/moved", max_bytes=100, private=True) == (b"<h1>Hello</h1>", "text/html; charset=utf-8")


def test_a_page_of_a_program_is_html(web):
    """Not the program's source, as its name would have it."""
    content = read(Source(f"{web}/page.php"), max_bytes=100, private=True)
    assert (content.name, content.media_type) == ("page.html", "text/html; charset=utf-8")


def test_private_addresses_are_refused_unless_allowed(web):
    """Before anything is sent."""
    with pytest.raises(UnreadableDocument, match=r"'127\.0\.0\.1' is at 127\.0\.0\.1, which is not a public address"):
        fetch(f"{web}/page.php", max_bytes=100)
    with pytest.raises(UnreadableDocument, match="not a public address"):
        fetch(web.replace("127.0.0.1", "localhost"), max_bytes=100)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing", "the server answered 404"),
        ("/round", "it redirects more than 5 times"),
        ("/away", "it redirects to file:///etc/passwd"),
        ("/gzip", r"it came compressed \(gzip\)"),
    ],
)
def test_what_goes_wrong_is_named(web, path, reason):
    """With the URL that was asked for."""
    with pytest.raises(UnreadableDocument, match=f"'{web}{path}' could not be read: {reason}"):
        fetch(f"{web}{path}", max_bytes=10_000, private=True)


@pytest.mark.parametrize("url", ["http://", "http://[", "ftp://example.org/x", "http://no-such-host.invalid/"])
def test_what_is_no_url_is_named(url):
    """And is no crash."""
    with pytest.raises(UnreadableDocument):
        fetch(url, max_bytes=100, private=True)


def test_a_page_that_is_too_large_is_dropped_on_the_way(web):
    """Whatever length it claims to have."""
    with pytest.raises(TooLarge, match="the limit is 13"):
        fetch(f"{web}/page.php", max_bytes=13, private=True)
    with pytest.raises(TooLarge, match="the limit is 1000000"):
        fetch(f"{web}/endless", max_bytes=10**6, private=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),  # shared by a provider's customers
        ("169.254.169.254", False),  # a cloud's metadata
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:1.1.1.1", True),
        ("64:ff9b::7f00:1", False),  # 127.0.0.1 behind a NAT64
        ("64:ff9b:1::7f00:1", False),  # behind one with a prefix of its own
        ("2002:7f00:1::", False),  # and in 6to4
        ("2001:0:1:2:3:4:5:6", False),  # Teredo
        ("::7f00:1", False),  # as IPv4-compatible addresses were written
        ("::ffff:0:7f00:1", False),
        ("fec0::1", False),  # site-local, of old
        ("168.63.129.16", False),  # Azure's metadata
        ("255.255.255.255", False),
    ],
)
def test_public_addresses_are_told_from_others(address, public):
    """However they are written."""
    assert is_public(address) == public
