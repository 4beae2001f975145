"""The library of a server elsewhere: uploads over HTTP, patient with a busy server, in the words of a strict one."""

import json
import threading
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.asking import Answered
from app.errors import Unavailable
from app.messages import Document
from app.sources import Source, find
from deployments.uploading import Remote


class Server:
    """Answers as the gateway does. answers: what comes first, by path; else documents are taken in."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.waited: list[float] = []
        self.documents: list[Document] = []
        self.together = self.most = 0
        self._lock = threading.Lock()

    def remote(self, **options: Any) -> Remote:
        transport = httpx.MockTransport(self._answer)
        return Remote("http://server:1", "secret", transport=transport, sleep=self.waited.append, **options)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
            if self.answers:
                answer = self.answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return answer
        if request.method == "GET":
            after = request.url.params.get("after")
            page = [one for one in self.documents if after is None or one.id < after]
            return httpx.Response(200, json={"data": [one.model_dump(mode="json") for one in page[:1000]]})
        if request.method == "DELETE":
            return httpx.Response(200, json={})
        made = document(len(self.requests))
        return httpx.Response(201, json=made.model_dump(mode="json") | {"duplicate": False})


def document(number: int, **metadata: str) -> Document:
    return Document(
        id=f"doc_{number:028x}",
        collection="default",
        title="t",
        media_type="text/plain",
        sha256=sha256(b"%d" % number).hexdigest(),
        size=3,
        chunks=2,
        created_at=datetime.now(UTC),
        metadata=metadata,
    )


def refusal(status: int, message: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message}}, headers=headers)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Five small files, found in a folder."""
    for number in range(5):
        (tmp_path / f"{number}.md").write_text(f"text {number}")
    return [found for found in find([str(tmp_path)]) if isinstance(found, Source)]


def test_a_document_is_sent_with_where_it_came_from(sources):
    """And with the key, the collection, and what the user says of all."""
    server = Server()
    (outcome,) = server.remote(collection="farm", metadata={"year": "2026"}).send(sources[:1], {})
    assert (outcome.state, outcome.chunks, outcome.size) == ("added", 2, 3)
    body = server.requests[0].read().decode()
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert "text 0" in body
    assert 'filename="0.md"' in body
    assert "farm" in body
    sent = {"year": "2026", "source": sources[0].uri, "source_version": sources[0].version}
    assert json.dumps(sent) in body


def test_a_content_that_is_there_is_not_sent(sources):
    """Its hash is enough."""
    server = Server()
    known = {sha256(b"text 0").hexdigest(): "doc_old"}
    (outcome,) = server.remote().send(sources[:1], known)
    assert (outcome.state, outcome.document, server.requests) == ("duplicate", "doc_old", [])


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(sources):
    """429, 503, and a connection that breaks."""
    server = Server(refusal(429, "busy", **{"retry-after": "7"}), httpx.ConnectError("refused"))
    (outcome,) = server.remote().send(sources[:1], {})
    assert outcome.state == "added"
    assert server.waited == [7, 2]


def test_a_server_that_stays_away_ends_the_run_with_its_reason(sources):
    """It is no document's failure, and what is in stays in."""
    with pytest.raises(Unavailable, match=r"The librarian is away"):
        list(Server(*[refusal(503, "The librarian is away")] * 6).remote(uploads=1).send(sources, {}))
    with pytest.raises(Unavailable, match="does not answer"):
        list(Server(*[httpx.ConnectError("refused")] * 6).remote().held())


def test_what_the_server_refuses_is_told_in_its_words(sources):
    """A kind that it does not read was only found, so it is skipped; a key that is wrong ends the run."""
    server = Server(refusal(415, "'0.md' is binary data"), refusal(413, "too large"))
    outcomes = list(server.remote(uploads=1).send(sources[:2], {}))
    assert [(one.state, one.why) for one in outcomes] == [("skipped", "'0.md' is binary data"), ("failed", "too large")]
    with pytest.raises(Answered, match="wrong key"):
        list(Server(refusal(401, "wrong key")).remote(uploads=1).send(sources, {}))


def test_documents_are_listed_page_by_page():
    """With what a run needs to know of them."""
    server = Server()
    server.documents = [document(number, source=f"s{number}") for number in range(1001, 0, -1)]
    held = list(server.remote().held())
    assert [one.source for one in held] == [f"s{number}" for number in range(1001, 0, -1)]
    assert len(server.requests) == 2


def test_deleting_what_is_gone_is_done():
    """Somebody else was faster."""
    Server(refusal(404, "gone")).remote().delete("doc_1")
    with pytest.raises(Answered, match="not for this"):
        Server(refusal(403, "not for this")).remote().delete("doc_1")
