"""Documents come in whole or not at all, once per content, and go without a trace, whatever dies in between."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from app.documents import Held
from app.errors import InvalidRequest, NotFound, TooLarge, Unavailable, UnreadableDocument, UnsupportedMedia
from app.files import Files
from app.messages import Added, Index, NewText
from app.postgres_home import PostgresHome
from app.prepared import Prepared, new_document
from app.reading import Reader
from app.settings import DocumentSettings
from app.vectors import Floats
from deployments.librarian import UNCUT_CHARS, Librarian
from tests import documents

pytestmark = pytest.mark.integration

TEXT = NewText(
    content="The wheat was cut on 3 August.\n\nThe rye follows.", metadata={"source": "manual", "year": 2026}
)


class Shelf:
    """A retriever that keeps chunks in a dict. `open` holds indexing up; `away` makes it fail half-way."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[str, str, str], tuple[str, ...]] = {}
        self.indexed = 0
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.away = False

    async def index(self, index: Index, vectors: Floats | None = None) -> int:
        self.entered.set()
        self.vectors = vectors
        await self.open.wait()
        key = (index.tenant, index.collection, index.document_id)
        self.chunks[key] = tuple(chunk.text for chunk in index.chunks[:1])
        if self.away:
            raise Unavailable("retriever", "away")
        self.chunks[key] = tuple(chunk.text for chunk in index.chunks)
        self.indexed += 1
        return len(index.chunks)

    async def forget(self, collection: str, document_id: str, tenant: str) -> None:
        if self.away:
            raise Unavailable("retriever", "away")
        self.chunks.pop((tenant, collection, document_id), None)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def url(postgres_home: Path, pool: asyncpg.Pool) -> str:
    """The test's PostgreSQL, with empty tables."""
    return f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}&port=5432"


@pytest.fixture
async def open_librarian(shelf: Shelf, url: str, tmp_path: Path) -> AsyncIterator[Callable[..., Librarian]]:
    """Opens librarians of one home, one after the other or at the same time."""
    opened = []

    def open_one(**settings: Any) -> Librarian:
        opened.append(Librarian(shelf, DocumentSettings(**settings), tmp_path, url))
        return opened[-1]

    yield open_one
    for librarian in opened:
        await librarian.close()


@pytest.fixture
async def librarian(open_librarian: Callable[..., Librarian]) -> Librarian:
    return open_librarian(max_bytes=100_000, max_text_chars=50_000)


def kept(home: Path) -> list[Path]:
    """The files of all documents, partial ones included."""
    return [path for path in (home / "files").rglob("*") if path.is_file()]


async def test_a_text_is_kept_listed_and_found_by_its_id(librarian, shelf, tmp_path):
    """Row, file and chunks agree."""
    added = await librarian.add_text("acme", TEXT)
    document = added.document
    assert not added.duplicate
    assert (document.title, document.media_type, document.chunks) == ("The wheat was cut on 3 August.", "text/plain", 1)
    assert document.metadata == {"source": "manual", "year": 2026}
    assert await librarian.get("acme", document.id) == document
    assert await librarian.list("acme") == (document,)
    assert [path.read_text() for path in kept(tmp_path)] == [TEXT.content]
    assert shelf.chunks == {("acme", "default", document.id): (TEXT.content,)}


async def test_a_file_is_read_kept_and_indexed(librarian, shelf, tmp_path):
    """With the title that it has, unless the sender gives one."""
    data = documents.pdf("Wheat.", "Rye.", title="Harvest")
    added = await librarian.add_file("acme", "farm", "C:\\docs\\report.pdf", "application/pdf", data)
    assert (added.document.title, added.document.name, added.document.chunks) == ("Harvest", "report.pdf", 1)
    assert (added.document.media_type, added.document.size) == ("application/pdf", len(data))
    assert kept(tmp_path)[0].read_bytes() == data
    assert shelf.chunks == {("acme", "farm", added.document.id): ("Wheat.\nRye.",)}
    other = await librarian.add_file("acme", "default", "report.pdf", None, data, "My title", {"year": 2026})
    assert (other.document.title, other.document.metadata) == ("My title", {"year": 2026})


async def test_what_was_prepared_elsewhere_is_kept_like_an_upload(librarian, shelf, tmp_path):
    """Once per content, whole or not at all; each document has its own answer, and vectors are passed on."""
    data = b"# Harvest\n\nWheat was cut."
    read = await Reader(await librarian.settings()).read(data, name="harvest.md")
    documents = [new_document("acme", "farm", "harvest.md", data, read, {"source": "x"}) for _ in range(2)]
    vectors = np.ones((1, 4), np.float32)
    first, second = await librarian.add_prepared([Prepared(one, data, read.chunks, vectors) for one in documents])
    assert sorted((first.duplicate, second.duplicate)) == [False, True]
    assert first.document == second.document == await librarian.get("acme", first.document.id)
    assert [path.read_bytes() for path in kept(tmp_path)] == [data]
    assert shelf.vectors is vectors
    upload = await librarian.add_file("acme", "farm", "again.md", None, data)
    assert (upload.duplicate, upload.document.title) == (True, "Harvest")
    shelf.away = True
    other = new_document("acme", "default", "harvest.md", data, read, {})
    (failed,) = await librarian.add_prepared([Prepared(other, data, read.chunks, vectors)])
    assert isinstance(failed, Unavailable)
    assert await librarian.list("acme", "default") == ()


async def test_the_same_content_is_taken_in_once_per_collection(librarian, shelf):
    """A second upload gets the first one's document, whatever it is called now."""
    first = await librarian.add_text("acme", TEXT)
    again = await librarian.add_text("acme", TEXT.model_copy(update={"title": "Another title"}))
    file = await librarian.add_file("acme", "default", "wheat.txt", None, TEXT.content.encode())
    assert again == file == Added(document=first.document, duplicate=True)
    elsewhere = await librarian.add_text("acme", TEXT.model_copy(update={"collection": "farm"}))
    foreign = await librarian.add_text("other", TEXT)
    assert not elsewhere.duplicate
    assert not foreign.duplicate
    assert shelf.indexed == 3


async def test_concurrent_uploads_of_a_content_make_one_document(open_librarian, shelf):
    """Two processes' worth of uploads: one takes it in, the others answer when it is ready and not before."""
    one, other = open_librarian(), open_librarian()
    shelf.open.clear()
    uploads = [asyncio.create_task(librarian.add_text("acme", TEXT)) for librarian in (one, other) * 3]
    await shelf.entered.wait()
    assert not any(upload.done() for upload in uploads)
    shelf.open.set()
    results = await asyncio.gather(*uploads)
    assert sorted(result.duplicate for result in results) == [False] + [True] * 5
    assert len({result.document.id for result in results}) == 1
    assert shelf.indexed == 1


async def test_the_list_is_paged_newest_first(librarian):
    """A page goes on behind an id, even one that is gone; other tenants see nothing."""
    added = [
        (await librarian.add_text("acme", NewText(content=f"text {n}", collection="ab"[n % 2]))).document
        for n in range(5)
    ]
    newest = tuple(reversed(added))
    assert await librarian.list("acme", None, 2) == newest[:2]
    assert await librarian.list("acme", None, 2, newest[1].id) == newest[2:4]
    await librarian.delete("acme", newest[1].id)
    assert await librarian.list("acme", None, 9, newest[1].id) == newest[2:]
    assert await librarian.list("acme", "b") == (newest[3],)
    assert await librarian.list("other") == ()


async def test_a_deleted_document_leaves_nothing(librarian, shelf, tmp_path):
    """No row, file or chunk; its content can be taken in again."""
    document = (await librarian.add_text("acme", TEXT)).document
    await librarian.delete("acme", document.id)
    with pytest.raises(NotFound):
        await librarian.get("acme", document.id)
    with pytest.raises(NotFound):
        await librarian.delete("acme", document.id)
    assert (kept(tmp_path), shelf.chunks) == ([], {})
    assert not (await librarian.add_text("acme", TEXT)).duplicate


@pytest.mark.parametrize("document_id", ["doc_absent", "doc_" + "0" * 28, "x\0y", "../x"])
async def test_a_stranger_finds_nothing(librarian, document_id):
    """Unknown ids, and known ones of another tenant."""
    document = (await librarian.add_text("acme", TEXT)).document
    for tenant, wanted in (("acme", document_id), ("other", document.id)):
        with pytest.raises(NotFound):
            await librarian.get(tenant, wanted)
        with pytest.raises(NotFound):
            await librarian.delete(tenant, wanted)
    assert await librarian.get("acme", document.id) == document


BAD_TEXTS = [
    (NewText(content=" \n\t\0"), InvalidRequest, "content has no text"),
    (NewText(content="x" * 100_001), TooLarge, "100001 bytes, the limit is 100000"),
    (NewText(content="x" * 50_001), TooLarge, "50001 characters, the limit is 50000"),
    (NewText(content="x" * 8_001, chunk=False), InvalidRequest, "8001 characters.*at most 8000"),
    (NewText(content="x", collection="../etc"), InvalidRequest, "no collection name"),
    (NewText(content="x", metadata={"a": "x" * 16_000}), InvalidRequest, "the limit is 16000"),
    (NewText(content="x", metadata={"a": float("nan")}), InvalidRequest, "no valid JSON"),
    (NewText(content="x", metadata={"a": "\0"}), InvalidRequest, "U\\+0000"),
    (NewText(content="x", metadata={"\ud800": 1}), InvalidRequest, "no valid JSON"),
]


@pytest.mark.parametrize(("text", "error", "reason"), BAD_TEXTS, ids=[row[2] for row in BAD_TEXTS])
async def test_what_cannot_be_kept_is_refused_and_leaves_nothing(librarian, shelf, tmp_path, text, error, reason):
    """By what is wrong with it, with both numbers."""
    with pytest.raises(error, match=reason):
        await librarian.add_text("acme", text)
    assert (await librarian.list("acme"), kept(tmp_path), shelf.chunks) == ((), [], {})


async def test_an_unreadable_file_leaves_nothing(librarian, shelf, tmp_path):
    """Nothing is written before the file was read."""
    with pytest.raises(UnreadableDocument):
        await librarian.add_file("acme", "default", "a.pdf", None, documents.pdf(""))
    with pytest.raises(UnsupportedMedia):
        await librarian.add_file("acme", "default", "a.docx", None, documents.pdf("x"))
    assert (await librarian.list("acme"), kept(tmp_path), shelf.chunks) == ((), [], {})


async def test_a_text_can_stay_in_one_piece(librarian, shelf):
    """`"chunk": false` keeps what would be cut as one passage, without the white space around it."""
    content = "One sentence. " * (UNCUT_CHARS // 14)
    document = (await librarian.add_text("acme", NewText(content=f"\n{content}\n", chunk=False))).document
    assert shelf.chunks["acme", "default", document.id] == (content.strip(),)


async def test_characters_that_no_store_takes_are_cleaned(librarian):
    """NUL and lone surrogates come in JSON; they do not break the upload."""
    added = await librarian.add_text("acme", NewText(content="wheat\0\ud800 rye", title="a\0b"))
    assert added.document.title == "ab"


class Died(BaseException):
    """As if the process had been killed: nothing is tidied up."""


def dying(method: Callable[..., Any], *, when: str) -> Callable[..., Any]:
    """The method, but the process dies just before or just after it, and nothing after that is done."""

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            await method(*args, **kwargs)
        raise Died

    def called(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            method(*args, **kwargs)
        raise Died

    return awaited if asyncio.iscoroutinefunction(method) else called


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "step"), [(Held, "begin"), (Files, "keep"), (Shelf, "index"), (Held, "move")])
async def test_a_death_while_taking_in_leaves_all_or_nothing(
    open_librarian, shelf, tmp_path, pool, monkeypatch, owner, step, when
):
    """After recovery the document is there as a whole, or there is no row, file or chunk of it."""
    first = open_librarian()
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, dying(getattr(owner, step), when=when))
        with pytest.raises(Died):
            await first.add_text("acme", TEXT)
    await first.close()
    second = open_librarian()
    await second.recover()
    ready = (owner, step, when) == (Held, "move", "after")
    rows = await pool.fetch("select state from documents")
    assert [row["state"] for row in rows] == ["ready"] * ready
    assert (len(kept(tmp_path)), len(shelf.chunks), len(await second.list("acme"))) == (ready, ready, ready)
    assert (await second.add_text("acme", TEXT)).duplicate == ready
    assert (len(kept(tmp_path)), len(shelf.chunks), len(await second.list("acme"))) == (1, 1, 1)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "step"), [(Held, "move"), (Shelf, "forget"), (Files, "drop"), (Held, "remove")])
async def test_a_deletion_that_has_begun_is_never_undone(
    open_librarian, shelf, tmp_path, pool, monkeypatch, owner, step, when
):
    """After recovery nothing is left, unless the death came before the first step."""
    first = open_librarian()
    document = (await first.add_text("acme", TEXT)).document
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, dying(getattr(owner, step), when=when))
        with pytest.raises(Died):
            await first.delete("acme", document.id)
    await first.close()
    second = open_librarian()
    if (step, when) != ("move", "before"):
        assert await second.list("acme") == ()  # at once, before recovery
    await second.recover()
    left = (step, when) == ("move", "before")
    assert (len(kept(tmp_path)), len(shelf.chunks), len(await second.list("acme"))) == (left, left, left)
    assert await pool.fetchval("select count(*) from documents") == left


async def test_a_failure_of_the_retriever_leaves_nothing(librarian, shelf, tmp_path, pool):
    """Its error is the caller's; what it had indexed goes when it is back, without a restart or another upload."""
    shelf.away = True
    with pytest.raises(Unavailable):
        await librarian.add_text("acme", TEXT)
    assert len(shelf.chunks) == 1  # half a document, which nobody could take back
    assert await librarian.list("acme") == ()
    shelf.away = False
    await librarian.recover()
    assert (kept(tmp_path), shelf.chunks, await pool.fetchval("select count(*) from documents")) == ([], {}, 0)


async def test_a_lost_connection_leaves_nothing(librarian, shelf, tmp_path, pool):
    """PostgreSQL drops us in the middle: the upload fails, and what it left goes without a restart."""
    shelf.open.clear()
    upload = asyncio.create_task(librarian.add_text("acme", TEXT))
    await shelf.entered.wait()
    await pool.execute(
        "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
    )
    shelf.open.set()
    with pytest.raises(Unavailable):
        await upload
    await librarian.recover()
    assert (kept(tmp_path), shelf.chunks, await pool.fetchval("select count(*) from documents")) == ([], {}, 0)
    assert not (await librarian.add_text("acme", TEXT)).duplicate


async def test_a_full_disk_leaves_nothing(librarian, shelf, tmp_path):
    """The file store's failure is a 503, before anything is indexed."""
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(Unavailable, match="file store"):
        await librarian.add_text("acme", TEXT)
    assert (shelf.chunks, await librarian.list("acme")) == ({}, ())


async def test_a_client_that_leaves_does_not_stop_what_is_begun(librarian, shelf):
    """The document is whole afterwards, and its next upload is a duplicate."""
    shelf.open.clear()
    upload = asyncio.create_task(librarian.add_text("acme", TEXT))
    await shelf.entered.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    shelf.open.set()
    assert (await librarian.add_text("acme", TEXT)).duplicate


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from app.messages import NewText
    from app.settings import DocumentSettings
    from deployments.librarian import Librarian

    class Endless:
        async def index(self, index, vectors=None):
            print(index.document_id, flush=True)
            await asyncio.Event().wait()

    async def main():
        librarian = Librarian(Endless(), DocumentSettings(), Path(sys.argv[1]), sys.argv[2])
        await librarian.add_text("acme", NewText(content=sys.argv[3]))

    asyncio.run(main())
"""


async def test_the_work_of_a_killed_process_is_taken_over(librarian, shelf, tmp_path, url):
    """While it lives nobody touches its document; as soon as it is dead, an upload that waited takes the content in."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), url, TEXT.content), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    document_id = (await process.stdout.readline()).decode().strip()
    assert await librarian.recover() == 0
    upload = asyncio.create_task(librarian.add_text("acme", TEXT))
    assert not (await asyncio.wait([upload], timeout=0.2))[0]
    process.kill()
    await process.wait()
    added = await upload
    assert (added.duplicate, added.document.id) == (False, document_id)
    assert (len(kept(tmp_path)), shelf.chunks) == (1, {("acme", "default", document_id): (TEXT.content,)})


async def test_without_postgresql_every_call_says_so(shelf, tmp_path):
    """503 with the part's name, and the process stays healthy."""
    librarian = Librarian(shelf, DocumentSettings(), tmp_path, "postgresql://nobody@127.0.0.1:9/none")
    await librarian.check_health()
    for call in (librarian.add_text("acme", TEXT), librarian.list("acme"), librarian.get("acme", "doc_" + "0" * 28)):
        with pytest.raises(Unavailable, match="database"):
            await call
    assert (kept(tmp_path), shelf.chunks) == ([], {})
    await librarian.close()
