"""Files and vector stores as OpenAI's own client uses them, through the gateway's routes, on real stores."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import asyncpg
import httpx2
import openai
import pytest
from fastapi import FastAPI

from app.feedback import FeedbackStore
from app.forgetting import Forgetting
from app.keyring import Caller
from app.messages import Delta, Generate, Measure
from app.postgres_home import PostgresHome
from app.recorder import Recorder
from app.responses import Responses
from app.settings import DocumentSettings, RagSettings, Settings
from app.shelves import Shelves
from app.spool import Spool
from app.uploads import Uploads
from deployments.answering import Answering
from deployments.guard import Guard
from deployments.librarian import Librarian
from deployments.metrics import Metrics
from deployments.routes import conversations, documents, files, refusals, responses, vector_stores
from tests import documents as made
from tests.fakes import DONE, NO_TOOLS, Handle, Keyring, Streamed
from tests.integration.test_conversations import chat
from tests.library import retrieving
from tests.openai_schema import validate, validate_event

pytestmark = pytest.mark.integration

TENANTS = {"ours": "us", "theirs": "them"}  # by key
HARVEST = "The wheat was cut on 3 August.\n\nThe rye follows in autumn."
TOOLS = "The red tractor needs new brakes.\n\nThe plough was sharpened."


class Library(NamedTuple):
    """The gateway's routes, and what is behind them."""

    app: FastAPI
    recorder: Recorder
    vectors: Any
    pool: asyncpg.Pool

    def http(self, key: str = "ours") -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {key}"}
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    def openai(self, key: str = "ours") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key=key, max_retries=0, http_client=self.http(key),
            _strict_response_validation=True,
        )  # fmt: skip


def answer(prompt: Generate) -> Streamed:
    """A model that cites the first source, where it has one."""
    cited = "<sources>" in prompt.messages[-1].content
    return Streamed([Delta("As it says [1]." if cited else "I have no sources.", 3), DONE])


async def measure(_: Generate, texts: tuple[str, ...]) -> Measure:
    return Measure(prompt_tokens=10, text_tokens=tuple(len(text) // 4 for text in texts), window=4096)


@pytest.fixture
async def library(pool: asyncpg.Pool, postgres_home: Path, tmp_path: Path) -> AsyncIterator[Library]:
    url = f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}&port=5432"
    async with retrieving(tmp_path / "home") as (retriever, vectors):
        librarian = Librarian(retriever, DocumentSettings(max_bytes=100_000), tmp_path / "home", url)
        recorder = Recorder(pool, Spool(tmp_path / "spool"))
        gateway: Any = SimpleNamespace(
            recorder=recorder,
            conversations=recorder.conversations,
            forgetting=Forgetting(pool),
            feedback=FeedbackStore(pool),
            shelves=Shelves(pool),
            uploads=Uploads(pool),
            retriever=Handle(search=retriever.search, chunks=retriever.chunks),
            answering=Answering(
                Handle(generate=answer, measure=measure),
                Handle(search=retriever.search),
                recorder,
                RagSettings(min_score=0.1),
                30.0,
                Metrics(),
            ),
            responses=Responses(pool),
            tooling=NO_TOOLS,
            served=lambda model: model,
            librarian=Handle(**{name: getattr(librarian, name) for name in ("add_text", "list", "get", "delete")}),
            settings=Settings(documents=DocumentSettings(max_bytes=100_000)),
        )
        app = FastAPI()
        callers = {key: Caller(tenant=tenant) for key, tenant in TENANTS.items()}
        app.add_middleware(
            Guard, keyring=Keyring(callers), limiter=None, max_body=50_000, max_upload=100_000, metrics=Metrics()
        )
        refusals.register(app)
        for group in (files, vector_stores, documents, conversations, responses):
            app.include_router(group.routes(gateway))
        yield Library(app, recorder, vectors, pool)
        await librarian.close()


async def upload(client: openai.AsyncOpenAI, text: str | bytes = HARVEST, name: str = "harvest.txt") -> str:
    data = text.encode() if isinstance(text, str) else text
    return (await client.files.create(file=(name, data), purpose="assistants")).id


async def filled(client: openai.AsyncOpenAI, **texts: str) -> tuple[str, dict[str, str]]:
    """A vector store with some files on it, and their ids by name."""
    ids = {name: await upload(client, text, f"{name}.txt") for name, text in texts.items()}
    store = await client.vector_stores.create(name="farm")
    batch = await client.vector_stores.file_batches.create_and_poll(
        store.id, file_ids=list(ids.values()), poll_interval_ms=50
    )
    assert (batch.status, batch.file_counts.completed) == ("completed", len(ids))
    return store.id, ids


async def eventually(library: Library, query: str) -> None:
    """Wait until the database answers so; what does it works in the background."""
    async with asyncio.timeout(20):
        while not await library.pool.fetchval(query):  # noqa: ASYNC110 - another process could be the one who does it
            await asyncio.sleep(0.05)


async def test_a_file_is_kept_listed_told_and_deleted(library: Library):
    """As the client and the schema have it, byte for byte."""
    client = library.openai()
    kept = await client.files.create(
        file=("été.txt", b"\x00\xffdata"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (kept.filename, kept.bytes, kept.purpose, kept.status) == ("été.txt", 6, "user_data", "processed")
    assert kept.expires_at == kept.created_at + 3600
    assert (await client.files.content(kept.id)).content == b"\x00\xffdata"
    assert await client.files.retrieve(kept.id) == kept
    other = await upload(client)
    assert [one.id async for one in client.files.list(limit=1)] == [other, kept.id]
    assert [one.id async for one in client.files.list(purpose="user_data", order="asc")] == [kept.id]
    async with library.http() as http:
        validate("OpenAIFile", (await http.get(f"/v1/files/{other}")).json())
        validate("ListFilesResponse", (await http.get("/v1/files")).json())
        validate("DeleteFileResponse", (await http.delete(f"/v1/files/{other}")).json())
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(other)


async def test_files_of_a_vector_store_are_found_and_cited(library: Library):
    """A search finds the passage, with the file's id, name and attributes; and nothing of what is not on the store."""
    client = library.openai()
    store, ids = await filled(client, harvest=HARVEST, tools=TOOLS)
    await upload(client, "The wheat was cut on 4 August, says somebody else.", "rumour.txt")
    await client.vector_stores.files.update(ids["harvest"], vector_store_id=store, attributes={"year": 2026})
    page = await client.vector_stores.search(store, query="when was the wheat cut", max_num_results=3)
    best = page.data[0]
    assert (best.file_id, best.filename, best.attributes) == (ids["harvest"], "harvest.txt", {"year": 2026})
    assert "3 August" in best.content[0].text
    assert best.score > page.data[-1].score
    assert {one.file_id for one in page.data} == set(ids.values())
    some = await client.vector_stores.search(
        store, query=["wheat", "the red tractor"], ranking_options={"score_threshold": 0.3}
    )
    assert {one.file_id for one in some.data} == set(ids.values())
    text = [piece.text async for piece in client.vector_stores.files.content(ids["harvest"], vector_store_id=store)]
    assert "\n\n".join(text).replace("\n\n\n\n", "\n\n").startswith("The wheat was cut on 3 August.")


async def test_attributes_filter_what_is_found(library: Library):
    """Comparisons and their joints, of what is true now."""
    client = library.openai()
    store, ids = await filled(client, a="wheat one", b="wheat two")
    await client.vector_stores.files.update(ids["a"], vector_store_id=store, attributes={"year": 2025, "kind": "old"})
    await client.vector_stores.files.update(ids["b"], vector_store_id=store, attributes={"year": 2026})

    async def found(filters: Any) -> list[str]:
        page = await client.vector_stores.search(store, query="wheat", filters=filters)
        return sorted(one.filename[0] for one in page.data)

    newer: Any = {"type": "gt", "key": "year", "value": 2025}
    assert await found(newer) == ["b"]
    assert await found({"type": "or", "filters": [newer, {"type": "eq", "key": "kind", "value": "old"}]}) == ["a", "b"]
    assert await found({"type": "and", "filters": [newer, {"type": "eq", "key": "kind", "value": "old"}]}) == []


async def test_everything_told_of_vector_stores_is_as_the_schema_has_it(library: Library):
    """Object by object, in every state."""
    client = library.openai()
    store, ids = await filled(client, harvest=HARVEST)
    file = ids["harvest"]
    async with library.http() as http:

        async def told(method: str, path: str, **body: Any) -> Any:
            answer = await http.request(method, f"/v1/vector_stores{path}", json=body or None)
            assert answer.status_code == 200, answer.text
            return answer.json()

        static = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}
        validate("VectorStoreObject", await told("POST", f"/{store}", name="new", metadata={"a": "b"}))
        validate("VectorStoreFileObject", await told("POST", f"/{store}/files", file_id=file, chunking_strategy=static))
        validate("VectorStoreFileObject", await told("GET", f"/{store}/files/{file}"))
        validate("ListVectorStoresResponse", await told("GET", ""))
        validate("ListVectorStoreFilesResponse", await told("GET", f"/{store}/files"))
        validate("VectorStoreFileContentResponse", await told("GET", f"/{store}/files/{file}/content"))
        batch = await told("POST", f"/{store}/file_batches", files=[{"file_id": file, "attributes": {"x": True}}])
        validate("VectorStoreFileBatchObject", batch)
        cancelled = await told("POST", f"/{store}/file_batches/{batch['id']}/cancel")
        validate("VectorStoreFileBatchObject", cancelled)
        assert cancelled["status"] == "cancelled"
        validate("VectorStoreSearchResultsPage", await told("POST", f"/{store}/search", query="wheat"))
        validate("DeleteVectorStoreFileResponse", await told("DELETE", f"/{store}/files/{file}"))
        validate("DeleteVectorStoreResponse", await told("DELETE", f"/{store}"))


async def test_a_file_that_cannot_be_read_has_failed_and_says_why(library: Library):
    """The others of its batch come all the same, and the store counts them."""
    client = library.openai()
    bad = await upload(client, b"\x00\x01\x02", "photo.jpg")
    broken = await upload(client, made.pdf("secret", password="x"), "locked.pdf")
    good = await upload(client)
    store = await client.vector_stores.create(file_ids=[bad, broken, good])
    assert (store.status, store.file_counts.total) == ("in_progress", 3)
    states = {}
    for id_ in (bad, broken, good):
        file = await client.vector_stores.files.poll(id_, vector_store_id=store.id, poll_interval_ms=50)
        states[id_] = (file.status, file.last_error and file.last_error.code)
    assert states == {
        bad: ("failed", "unsupported_file"), broken: ("failed", "invalid_file"), good: ("completed", None)
    }  # fmt: skip
    store = await client.vector_stores.retrieve(store.id)
    assert (store.status, store.file_counts.failed, store.usage_bytes) == ("completed", 2, len(HARVEST))
    listed = client.vector_stores.files.list(store.id, filter="failed")
    assert {file.id async for file in listed} == {bad, broken}


async def test_a_chunking_strategy_is_followed_also_when_it_changes(library: Library):
    """In tokens of four characters; putting a file there again cuts it anew."""
    client = library.openai()
    text = " ".join(f"Sentence number {number} is here." for number in range(60))  # 1800 characters
    store, ids = await filled(client, long=text)
    before = len((await client.vector_stores.files.content(ids["long"], vector_store_id=store)).data)
    strategy: Any = {"type": "static", "static": {"max_chunk_size_tokens": 1000, "chunk_overlap_tokens": 0}}
    file = await client.vector_stores.files.create_and_poll(
        ids["long"], vector_store_id=store, chunking_strategy=strategy, poll_interval_ms=50
    )
    assert file.chunking_strategy == openai.types.StaticFileChunkingStrategyObject.model_validate(strategy)
    content = (await client.vector_stores.files.content(ids["long"], vector_store_id=store)).data
    assert (before > 3, len(content)) == (True, 1)


async def test_what_is_taken_off_or_deleted_is_found_by_nobody_at_once(library: Library):
    """A file from its store, a file at all, a store with all its files; and in the end nothing of them is left."""
    client = library.openai()
    store, ids = await filled(client, a="wheat one", b="wheat two", c="wheat three")

    async def found() -> list[str]:
        return sorted(one.filename[0] for one in (await client.vector_stores.search(store, query="wheat")).data)

    assert await found() == ["a", "b", "c"]
    await client.vector_stores.files.delete(ids["a"], vector_store_id=store)
    assert await found() == ["b", "c"]
    await client.files.delete(ids["b"])
    assert await found() == ["c"]
    assert [file.id async for file in client.vector_stores.files.list(store)] == [ids["c"]]
    await client.vector_stores.delete(store)
    with pytest.raises(openai.NotFoundError):
        await client.vector_stores.search(store, query="wheat")
    assert (await client.files.retrieve(ids["c"])).filename == "c.txt"
    await eventually(library, "select not exists (select from shelves) and not exists (select from documents)")
    assert await library.vectors.count(store, "us") == 0


async def test_two_files_of_one_content_share_a_document_until_both_are_gone(library: Library):
    """Taking one off leaves what is found of the other."""
    client = library.openai()
    store, ids = await filled(client, a=HARVEST, b=HARVEST)
    await client.vector_stores.files.delete(ids["a"], vector_store_id=store)
    await eventually(library, "select count(*) = 1 from shelved")
    (best, *_) = (await client.vector_stores.search(store, query="wheat")).data
    assert best.file_id == ids["b"]
    await client.vector_stores.files.delete(ids["b"], vector_store_id=store)
    await eventually(library, "select not exists (select from documents)")


async def test_a_vector_store_expires_after_it_was_last_used(library: Library):
    """Then it says so, and holds nothing any more."""
    client = library.openai()
    store, _ = await filled(client, a="wheat")
    kept = await client.vector_stores.update(store, expires_after={"anchor": "last_active_at", "days": 1})
    assert kept.expires_at is not None
    assert kept.expires_at - (kept.last_active_at or 0) == 86_400
    await library.pool.execute("update shelves set active_at = now() - interval '2 days'")
    assert (await client.vector_stores.retrieve(store)).status == "expired"
    with pytest.raises(openai.BadRequestError, match="expired"):
        await client.vector_stores.search(store, query="wheat")


async def test_pages_of_vector_stores_go_both_ways(library: Library):
    """`after` and `before`, in either order."""
    client = library.openai()
    ids = [(await client.vector_stores.create(name=str(number))).id for number in range(5)]
    assert [store.id async for store in client.vector_stores.list(limit=2)] == ids[::-1]
    page = await client.vector_stores.list(limit=2, order="asc", before=ids[3])
    assert ([store.id for store in page.data], page.has_more) == (ids[1:3], True)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/vector_stores/STORE/search", {"query": "a", "rewrite_query": True}, 400, "rewrite_query"),
        ("POST", "/vector_stores/STORE/search", {"query": []}, 400, "query"),
        ("POST", "/vector_stores/STORE/search", {"query": "a", "max_num_results": 51}, 400, "max_num_results"),
        ("POST", "/vector_stores/STORE/search", {"query": "a", "surprise": 1}, 400, "surprise"),
        (
            "POST",
            "/vector_stores/STORE/search",
            {"query": "a", "filters": {"type": "in", "key": "k", "value": "v"}},
            400,
            "filters",
        ),
        ("POST", "/vector_stores/STORE/files", {"file_id": "file-nothing"}, 404, None),
        ("POST", "/vector_stores/STORE/file_batches", {}, 400, "file_ids"),
        ("POST", "/vector_stores", {"expires_after": {"anchor": "created_at", "days": 1}}, 400, "expires_after.anchor"),
        ("POST", "/vector_stores", {"file_ids": ["file-nothing"]}, 404, None),
        ("POST", "/vector_stores", {"metadata": {str(n): "x" for n in range(17)}}, 400, "metadata"),
        ("GET", "/vector_stores/vs_nothing", None, 404, None),
        ("GET", "/vector_stores/STORE/files?after=file-nothing", None, 404, None),
        ("GET", "/vector_stores/%00", None, 404, None),
        ("GET", "/files/file-nothing/content", None, 404, None),
        ("DELETE", "/files/%00", None, 404, None),
    ],
)
async def test_bad_requests_are_refused_by_name(library: Library, method, path, body, status, param):
    """With the right 4xx, and the parameter."""
    store = (await library.openai().vector_stores.create()).id
    async with library.http() as http:
        answer = await http.request(method, f"/v1{path.replace('STORE', store)}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"purpose": "batch"}, 400, "purpose"),
        ({"purpose": "nonsense"}, 400, "purpose"),
        ({}, 400, "purpose"),
        ({"purpose": "assistants", "expires_after[anchor]": "created_at"}, 400, "expires_after[seconds]"),
        ({"purpose": "assistants", "expires_after[anchor]": "x", "expires_after[seconds]": "9"}, 400,
         "expires_after[anchor]"),
    ],
)  # fmt: skip
async def test_bad_uploads_are_refused_by_name(library: Library, fields, status, param):
    """The form's fields as OpenAI's SDK writes them."""
    async with library.http() as http:
        answer = await http.post("/v1/files", data=fields, files={"file": ("a.txt", b"a")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


async def test_a_file_that_is_too_large_is_refused_with_both_numbers(library: Library):
    """By the setting that can be raised."""
    with pytest.raises(openai.APIStatusError, match=r"the limit is .*documents\.max_bytes") as refused:
        await upload(library.openai(), "x" * 100_001)
    assert refused.value.status_code == 413


@pytest.mark.parametrize("stream", [False, True])
async def test_file_search_answers_from_vector_stores_and_cites_their_files(library: Library, stream: bool):
    """The tool of the Responses API: searched before the answer, told as an item, cited by the file's id; and the
    response that was kept says the same.
    """
    client = library.openai()
    store, ids = await filled(client, harvest=HARVEST, tools=TOOLS)
    await client.vector_stores.files.update(ids["tools"], vector_store_id=store, attributes={"kind": "tool"})
    tool: Any = {"type": "file_search", "vector_store_ids": [store], "max_num_results": 1}
    asked: dict[str, Any] = {"model": "m", "input": "When was the wheat cut?", "include": ["file_search_call.results"]}
    if stream:
        events = [event async for event in await client.responses.create(**asked, tools=[tool], stream=True)]
        for event in events:
            validate_event(event.model_dump(mode="json", exclude_unset=True))
        kinds = [event.type for event in events]
        assert kinds[2:7] == [
            "response.output_item.added",
            *(f"response.file_search_call.{state}" for state in ("in_progress", "searching", "completed")),
            "response.output_item.done",
        ]
        told = events[-1].response
    else:
        told = await client.responses.create(**asked, tools=[tool])
    search, message = told.output
    assert (search.type, search.queries, search.status) == ("file_search_call", [asked["input"]], "completed")
    assert [(one.file_id, one.filename) for one in search.results] == [(ids["harvest"], "harvest.txt")]
    (cited,) = message.content[0].annotations
    assert (cited.type, cited.file_id, cited.filename) == ("file_citation", ids["harvest"], "harvest.txt")
    kept = await client.responses.retrieve(told.id, include=["file_search_call.results"])
    assert (kept.output, kept.tools) == (told.output, told.tools)

    tool["filters"] = {"type": "eq", "key": "kind", "value": "tool"}
    other = await client.responses.create(**asked, tools=[tool], previous_response_id=told.id)
    assert {one.file_id for one in other.output[0].results} <= {ids["tools"]}
    again = [*(item.model_dump() for item in told.output), {"role": "user", "content": "Are you sure?"}]
    assert (await client.responses.create(model="m", input=again)).status == "completed"


async def test_file_search_without_a_vector_store_of_ones_own_is_refused(library: Library):
    """None at all, one that is not there, another tenant's; and `rag` beside it, which says the same otherwise."""
    client = library.openai()
    theirs, _ = await filled(library.openai("theirs"), secret="The recipe needs nutmeg.")
    store = (await client.vector_stores.create()).id
    tool: Any = {"type": "file_search", "vector_store_ids": [theirs]}
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model="m", input="recipe?", tools=[tool])
    for tools, extra, param in (
        ([{"type": "file_search"}], {}, "tools[0].vector_store_ids"),
        ([{"type": "file_search", "vector_store_ids": [store]}], {"rag": True}, "rag"),
        ([{"type": "file_search", "vector_store_ids": [store]}] * 2, {}, "tools[1]"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="m", input="recipe?", tools=tools, extra_body=extra)
        assert refused.value.param == param
    tool["vector_store_ids"] = [store]
    chosen: Any = {"tools": [tool], "tool_choice": {"type": "file_search"}}
    (search, message) = (await client.responses.create(model="m", input="recipe?", **chosen)).output
    assert (search.type, message.content[0].text) == ("file_search_call", "I have no sources.")


async def test_no_tenant_reaches_what_another_has(library: Library):
    """Every route of files and vector stores, by ids that it should not know: as if there were nothing."""
    ours, theirs = library.openai("ours"), library.openai("theirs")
    store, ids = await filled(theirs, secret="The recipe needs nutmeg.")
    batch = await theirs.vector_stores.file_batches.create(store, file_ids=[ids["secret"]])
    mine, file = (await ours.vector_stores.create()).id, ids["secret"]
    async with library.http("ours") as http:
        attacks = [
            ("GET", f"/files/{file}", None),
            ("GET", f"/files/{file}/content", None),
            ("DELETE", f"/files/{file}", None),
            ("GET", f"/vector_stores/{store}", None),
            ("POST", f"/vector_stores/{store}", {"name": "mine"}),
            ("DELETE", f"/vector_stores/{store}", None),
            ("POST", f"/vector_stores/{store}/search", {"query": "recipe"}),
            ("GET", f"/vector_stores/{store}/files", None),
            ("POST", f"/vector_stores/{store}/files", {"file_id": file}),
            ("GET", f"/vector_stores/{store}/files/{file}", None),
            ("POST", f"/vector_stores/{store}/files/{file}", {"attributes": {"a": 1}}),
            ("GET", f"/vector_stores/{store}/files/{file}/content", None),
            ("DELETE", f"/vector_stores/{store}/files/{file}", None),
            ("POST", f"/vector_stores/{store}/file_batches", {"file_ids": [file]}),
            ("GET", f"/vector_stores/{store}/file_batches/{batch.id}", None),
            ("GET", f"/vector_stores/{store}/file_batches/{batch.id}/files", None),
            ("POST", f"/vector_stores/{store}/file_batches/{batch.id}/cancel", None),
            # the other's file into a store of one's own, and the other's batch by way of it
            ("POST", f"/vector_stores/{mine}/files", {"file_id": file}),
            ("POST", f"/vector_stores/{mine}/file_batches", {"file_ids": [file]}),
            ("POST", "/vector_stores", {"file_ids": [file]}),
            ("GET", f"/vector_stores/{mine}/file_batches/{batch.id}", None),
            ("GET", f"/vector_stores/{mine}/files/{file}/content", None),
        ]
        for method, path, body in attacks:
            answer = await http.request(method, f"/v1{path}", json=body)
            assert answer.status_code == 404, (method, path, answer.text)
        assert (await http.get("/v1/files")).json()["data"] == []
        assert [one["id"] for one in (await http.get("/v1/vector_stores")).json()["data"]] == [mine]
        # the collection behind a vector store, by its name
        query = {"query": "recipe nutmeg", "collections": [store], "min_score": -1.0}
        assert (await http.post("/v1/documents/query", json=query)).json()["data"] == []
        plant = {"content": "The recipe needs poison.", "collection": store}
        assert (await http.post("/v1/documents", json=plant)).status_code == 400
    (only,) = (await theirs.vector_stores.search(store, query="recipe")).data
    assert only.content[0].text == "The recipe needs nutmeg."


async def test_no_tenant_reaches_the_memory_of_another(library: Library):
    """By a search of the collection of conversations, by an id, or by planting something there."""
    secret, _ = await chat(library.recorder.conversations, "where is the treasure", tenant="them")
    await eventually(library, "select not exists (select from unremembered)")
    query = {"query": "where is the treasure", "collections": ["conversations"], "min_score": -1.0}
    async with library.http("theirs") as http:
        (known,) = (await http.post("/v1/documents/query", json=query)).json()["data"]
        assert known["conversation_id"] == secret
    async with library.http("ours") as http:
        assert (await http.post("/v1/documents/query", json=query)).json()["data"] == []
        for path in (f"/v1/conversations/{secret}", f"/v1/documents/{known['document_id']}"):
            assert (await http.get(path)).status_code == 404
            assert (await http.delete(path)).status_code == 404
        plant = {"content": "The treasure is in the bank.", "collection": "conversations"}
        assert (await http.post("/v1/documents", json=plant)).status_code == 400
    async with library.http("theirs") as http:
        assert (await http.delete(f"/v1/conversations/{secret}")).status_code == 200
        assert (await http.post("/v1/documents/query", json=query)).json()["data"] == []
