"""The work of vector stores, whatever dies, is cancelled or goes away in between. On a real PostgreSQL."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from app.errors import InvalidRequest, NotFound, Unavailable
from app.ids import new_id
from app.messages import Added, Document
from app.shelf_work import working
from app.shelves import Put, Shelves
from app.uploads import Uploads
from deployments.shelving import Shelving

pytestmark = pytest.mark.integration


class Shop:
    """A librarian that keeps names. `meanwhile` runs while a file comes; `away` makes it fail; `broken` has a bug."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.kept: dict[str, Document] = {}
        self.meanwhile: Any = None
        self.away = self.broken = False

    async def add_file(self, tenant: str, collection: str, name: str, *_: object, **__: object) -> Added:
        if self.away:
            raise Unavailable("embedder", "away")
        if self.broken:
            raise ZeroDivisionError
        document = Document(
            id=new_id("doc_"), tenant=tenant, collection=collection, title=name, media_type="text/plain",
            sha256="00" * 32, size=1, chunks=1, created_at=datetime.now(UTC), metadata={},
        )  # fmt: skip
        await self.pool.execute(
            "insert into documents (id, tenant, collection, sha256, size, title, media_type, metadata, chunks, state,"
            " created_at) values ($1, $2, $3, decode(md5($1), 'hex'), 1, $4, 'text/plain', '{}', 1, 'ready', now())",
            document.id, tenant, collection, name,
        )  # fmt: skip
        self.kept[document.id] = document
        if self.meanwhile:
            await self.meanwhile()
        return Added(document=document, duplicate=False)

    async def list(self, tenant: str, collection: str | None = None, *_: object) -> tuple[Document, ...]:
        found = (document for document in self.kept.values() if document.collection == collection)
        return tuple(document for document in found if document.tenant == tenant)

    async def delete(self, tenant: str, document_id: str) -> Document:
        if document_id not in self.kept:
            raise NotFound("document", document_id)
        await self.pool.execute("delete from documents where id = $1", document_id)
        return self.kept.pop(document_id)


@pytest.fixture
def shelves(pool: asyncpg.Pool) -> Shelves:
    return Shelves(pool)


@pytest.fixture
def shop(pool: asyncpg.Pool) -> Shop:
    return Shop(pool)


def uploads_of(shelves: Shelves) -> Uploads:
    return Uploads(shelves._pool)


async def work(shop: Shop) -> int:
    """All that is to do, as a process of its own would do it. Returns how much it was."""
    worker, done = Shelving(shop.pool, shop), 0
    async with working(shop.pool) as turn:
        assert turn is not None
        while some := await worker.once(turn):
            done += some
    return done


async def on_shelf(shelves: Shelves, *names: str) -> tuple[str, list[str]]:
    """A shelf, and files on their way to it."""
    files = [(await uploads_of(shelves).keep("us", name, None, "assistants", name.encode(), None)).id for name in names]
    puts = [Put(upload_id=file, attributes={}, chunking=None) for file in files]
    made = await shelves.make("us", name="s", description=None, metadata={}, expires_days=None, puts=puts)
    return made.id, files


async def test_a_restart_goes_on_with_what_is_to_do(shelves: Shelves, shop: Shop):
    """What one process could not do, because a part was away or it died, another one does."""
    shelf, files = await on_shelf(shelves, "a", "b")
    shop.away = True
    with pytest.raises(Unavailable):
        await work(shop)
    assert (await shelves.shelf("us", shelf)).status == "in_progress"
    shop.away = False
    assert await work(shop) == 2
    assert await work(shop) == 0
    assert {file.status for file in await shelves.files("us", shelf)} == {"completed"}
    assert len(await shelves.searched("us", shelf)) == len(files)


async def test_a_file_that_is_taken_off_while_it_comes_leaves_nothing(shelves: Shelves, shop: Shop):
    """It is neither found nor kept."""
    shelf, (file,) = await on_shelf(shelves, "a")
    shop.meanwhile = lambda: shelves.take("us", shelf, file)
    await work(shop)
    assert (shop.kept, await shelves.files("us", shelf)) == ({}, ())


async def test_a_batch_that_is_cancelled_while_it_comes_leaves_nothing(shelves: Shelves, shop: Shop):
    """What was done before stays."""
    shelf, _ = await on_shelf(shelves)
    file = (await uploads_of(shelves).keep("us", "a", None, "assistants", b"a", None)).id
    put = Put(upload_id=file, attributes={}, chunking=None)
    batch = await shelves.put("us", shelf, [put], together=True)
    assert batch is not None
    shop.meanwhile = lambda: shelves.cancel("us", shelf, batch)
    await work(shop)
    assert shop.kept == {}
    assert [kept.status for kept in await shelves.files("us", shelf)] == ["cancelled"]


async def test_a_file_that_is_deleted_before_it_is_read_leaves_its_shelf(shelves: Shelves, shop: Shop):
    """Deleting a file takes it off all shelves, also those that it has not reached."""
    shelf, (file,) = await on_shelf(shelves, "a")
    await uploads_of(shelves).delete("us", file)
    await work(shop)
    assert (await shelves.files("us", shelf), shop.kept) == ((), {})


async def test_a_bug_fails_one_file_and_says_no_more_than_that(shelves: Shelves, shop: Shop):
    """Its traceback is in the log; the work goes on."""
    shelf, _ = await on_shelf(shelves, "a")
    shop.broken = True
    await work(shop)
    (file,) = await shelves.files("us", shelf)
    assert (file.status, file.error) == ("failed", ("server_error", "An internal error; the server's log has it."))


async def test_what_a_crash_left_on_a_shelf_goes_with_it(shelves: Shelves, shop: Shop):
    """A document that was taken in, and of which nothing was noted any more."""
    shelf, _ = await on_shelf(shelves, "a")
    await work(shop)
    await shop.add_file("us", shelf, "orphan")
    await shelves.delete("us", shelf)
    await work(shop)
    assert shop.kept == {}


async def test_a_document_that_was_deleted_by_itself_is_told_as_failed(shelves: Shelves, shop: Shop):
    """By `DELETE /v1/documents/{id}`, which knows nothing of vector stores; putting the file there anew helps."""
    shelf, (file,) = await on_shelf(shelves, "a")
    await work(shop)
    await shop.delete("us", next(iter(shop.kept)))
    kept = await shelves.file("us", shelf, file)
    assert (kept.status, kept.error and kept.error[0]) == ("failed", "server_error")
    assert await shelves.searched("us", shelf) == {}
    await shelves.put("us", shelf, [Put(upload_id=file, attributes={}, chunking=None)])
    await work(shop)
    assert (await shelves.file("us", shelf, file)).status == "completed"


async def test_what_expires_goes(shelves: Shelves, shop: Shop, pool: asyncpg.Pool):
    """Files, and what vector stores hold; nobody sees a file from that moment on."""
    shelf, (file, other) = await on_shelf(shelves, "a", "b")
    await work(shop)
    await pool.execute("update uploads set expires_at = now() where id = $1", file)
    with pytest.raises(NotFound):
        await uploads_of(shelves).one("us", file)
    await work(shop)
    assert [kept.upload_id for kept in await shelves.files("us", shelf)] == [other]
    await pool.execute("update shelves set expires_days = 1, active_at = now() - interval '2 days'")
    with pytest.raises(InvalidRequest, match="expired"):
        await shelves.searched("us", shelf)
    await work(shop)
    assert shop.kept == {}


async def test_a_shelf_has_an_end(pool: asyncpg.Pool):
    """Both numbers, and the limit."""
    shelves = Shelves(pool, most_files=1)
    shelf, files = await on_shelf(shelves, "a")
    with pytest.raises(InvalidRequest, match="holds 1 files, 1 are to come, 1 may be"):
        await shelves.put("us", shelf, [Put(upload_id=files[0], attributes={}, chunking=None)])


async def test_one_worker_works_at_a_time_and_notices_by_itself(shelves: Shelves, shop: Shop):
    """Nobody has to tell it."""
    came = asyncio.Event()

    async def noticed() -> None:
        came.set()

    shop.meanwhile = noticed
    busy = asyncio.create_task(Shelving(shop.pool, shop, rest_s=0.01).forever())
    await on_shelf(shelves, "a")
    async with asyncio.timeout(10):
        await came.wait()
    async with working(shop.pool) as turn:
        assert turn is None
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)
