"""Both vector stores keep one contract: the embedded Qdrant Edge, and qdrant-client, its local mode for a server."""

import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.errors import InvalidRequest, Misconfigured, Unavailable
from app.messages import Chunk, Index
from app.neighbours import Place
from app.vectors import Floats, Query, Space, Vectors
from app.vectors_edge import EdgeVectors
from app.vectors_remote import RemoteVectors
from deployments.vector_store import VectorStore

pytestmark = [
    pytest.mark.integration,
    # qdrant-client's local mode says what it leaves to the server: indexes, and how to search them.
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect", "ignore:Local mode performs exact"),
]

SPACE = Space(model="compass", dimension=3)
EAST, NORTH, UP = np.eye(3, dtype=np.float32)


@pytest.fixture(params=["edge", "remote"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Vectors]:
    opened = VectorStore(tmp_path) if request.param == "edge" else RemoteVectors(":memory:")
    yield opened
    await opened.close()


def document(name: str, *texts: str, tenant: str = "default", collection: str = "docs") -> Index:
    chunks = tuple(Chunk(number=n, text=text, start=10 * n, end=10 * n + 9, page=n + 1) for n, text in enumerate(texts))
    return Index(tenant=tenant, collection=collection, document_id=name, title=f"On {name}", chunks=chunks)


def near(
    vector: Floats,
    *collections: str,
    text: str = "",
    tenant: str = "default",
    top_k: int = 5,
    min_score: float = 0.3,
    space=SPACE,
) -> Query:
    return Query(text, vector, space, tenant, collections or ("docs",), top_k, min_score)


async def keep(store: Vectors, index: Index, *vectors: Floats) -> None:
    await store.create(index.collection, SPACE)
    await store.upsert(index, np.stack(vectors))


async def test_a_chunk_is_found_with_all_that_was_stored(store: Vectors):
    """A passage carries its document, title, heading, text, page and offsets."""
    index = document("maps", "east of here", "north of here")
    headed = tuple(chunk.model_copy(update={"heading": f"Part {chunk.number}"}) for chunk in index.chunks)
    await keep(store, index.model_copy(update={"chunks": headed}), EAST, NORTH)
    (found,) = await store.search(near(NORTH))
    assert found.model_dump(exclude={"score"}) == {
        "document_id": "maps", "collection": "docs", "title": "On maps", "chunk": 1,
        "text": "north of here", "page": 2, "start": 10, "end": 19, "heading": "Part 1", "conversation_id": None,
    }  # fmt: skip
    assert found.score == pytest.approx(1.0, abs=1e-6)


async def test_the_best_come_first_and_the_rest_is_dropped(store: Vectors):
    """Scores are cosines; below min_score, and beyond top_k over all collections together, nothing is returned."""
    tilted = np.array([math.cos(math.pi / 3), math.sin(math.pi / 3), 0], np.float32)  # 60° from east: cosine 0.5
    await keep(store, document("a", "tilted", "up"), tilted, UP)
    await keep(store, document("b", "east", collection="more"), EAST)
    found = await store.search(near(EAST, "docs", "more", "nobody-made-this"))
    assert [(hit.text, round(hit.score, 5)) for hit in found] == [("east", 1.0), ("tilted", 0.5)]
    assert [hit.text for hit in await store.search(near(EAST, "docs", "more", top_k=1))] == ["east"]
    assert [hit.text for hit in await store.search(near(EAST, "docs", "more", min_score=0.6))] == ["east"]


async def test_no_tenant_sees_another_ones_chunks(store: Vectors):
    """Same collection, same document id, same chunk: two tenants stay apart in every verb."""
    await keep(store, document("plan", "ours", tenant="us"), EAST)
    await keep(store, document("plan", "theirs", "and more", tenant="them"), EAST, EAST)
    assert [hit.text for hit in await store.search(near(EAST, tenant="us"))] == ["ours"]
    assert await store.search(near(EAST, tenant="strangers")) == ()
    assert (await store.count("docs", "us"), await store.count("docs", "them")) == (1, 2)
    await store.delete("docs", "us", "plan")
    assert [kept.chunk.text for kept in (await store.scroll("docs", "us")).chunks] == []
    assert await store.count("docs", "them", "plan") == 2


async def test_a_query_may_be_kept_to_some_documents_and_from_others(store: Vectors):
    """`only` and `without` narrow what the tenant could see, and never widen it."""
    for name in "abc":
        await keep(store, document(name, f"chunk of {name}"), EAST)
    await keep(store, document("d", "theirs", tenant="them"), EAST)

    async def found(**limits: tuple[str, ...]) -> list[str]:
        return sorted(hit.document_id for hit in await store.search(replace(near(EAST), **limits)))

    assert await found(only=("a", "c", "d")) == ["a", "c"]
    assert await found(without=("b",)) == ["a", "c"]
    assert await found(only=("a", "b"), without=("b", "c")) == ["a"]
    assert await found(only=()) == []


async def test_a_chunk_is_read_by_its_place(store: Vectors):
    """Whole, from several collections at once; what is not there is left out."""
    maps, plans = document("maps", "zero", "one"), document("plans", "other", collection="more")
    await keep(store, maps, EAST, NORTH)
    await keep(store, plans, UP)
    places = [Place("docs", "maps", 1), Place("more", "plans", 0)]
    missing = [Place("docs", "maps", 2), Place("docs", "lost", 0), Place("nobody-made-this", "maps", 0)]
    found = await store.read("default", [*places, *missing])
    assert found == {places[0]: maps.chunks[1], places[1]: plans.chunks[0]}
    assert await store.read("default", []) == {}


@pytest.mark.parametrize("attacker", ["them", "us' OR '1'='1", "*", "", "us\x00", "US", "us,them", "u" * 300])
async def test_no_verb_reaches_into_another_tenants_documents(attacker: str, store: Vectors):
    """With every id known: searching by vector, by words and by document, scrolling, reading, counting, overwriting and
    deleting as somebody else finds and changes nothing.
    """
    ours, place = document("plan", "the merger is secret", "and more", tenant="us"), Place("docs", "plan", 0)
    await keep(store, ours, EAST, NORTH)
    await keep(store, document("plan", "harmless", tenant=attacker), UP)
    by_vector, by_words = near(EAST, tenant=attacker, min_score=-1.0), near(UP, tenant=attacker, text="secret merger")
    for query in (by_vector, by_words, replace(by_vector, only=("plan",), top_k=100)):
        assert {hit.text for hit in await store.search(query)} == {"harmless"}
    assert [kept.chunk.text for kept in (await store.scroll("docs", attacker, "plan")).chunks] == ["harmless"]
    read = await store.read(attacker, [place, place._replace(chunk=1)])
    assert [chunk.text for chunk in read.values()] == ["harmless"]
    assert await store.count("docs", attacker) == 1
    await store.delete("docs", attacker, "plan")
    assert await store.read("us", [place]) == {place: ours.chunks[0]}
    mine = await store.search(near(EAST, tenant="us", min_score=-1.0))
    assert {hit.text for hit in mine} == {"the merger is secret", "and more"}


async def test_what_is_said_counts_beside_what_is_meant(store: Vectors):
    """Of two chunks as near by vector, the one with the query's words comes first, and its score says why."""
    await keep(store, document("a", "The valve opens.", "Error E1477 means a stuck valve."), EAST, EAST)
    found = await store.search(near(EAST, text="What does E1477 mean?"))
    assert [hit.chunk for hit in found] == [1, 0]
    assert [hit.score for hit in found] == pytest.approx([1.0, 0.7], abs=1e-5)


async def test_words_alone_bring_a_chunk_into_the_candidates(store: Vectors):
    """A name that only one of two hundred chunks holds is found there, though its vector is the farthest."""
    texts = [f"filler {number}" for number in range(200)]
    tilted = np.array([0.6, 0.8, 0], np.float32)
    await keep(store, document("a", *texts, "call retry_budget first"), *[EAST] * 200, tilted)
    found = await store.search(near(EAST, text="retryBudget", top_k=1))
    assert [hit.chunk for hit in found] == [200]


async def test_how_rare_a_word_is_depends_on_the_tenants_own_chunks(store: Vectors):
    """Another tenant's documents do not move our ranking, which would tell what they hold."""
    await keep(store, document("ours", *["alpha beta", "beta", "alpha", "alpha now"], tenant="us"), *[EAST] * 4)
    before = {hit.chunk: hit.score for hit in await store.search(near(EAST, text="alpha beta", tenant="us"))}
    await keep(store, document("theirs", *["alpha"] * 30, tenant="them"), *[NORTH] * 30)
    after = {hit.chunk: hit.score for hit in await store.search(near(EAST, text="alpha beta", tenant="us"))}
    assert after == pytest.approx(before)
    assert before[1] > before[2]  # beta is rarer among ours


async def test_a_document_is_fetched_as_it_was_upserted(store: Vectors):
    """Its chunks in order with their vectors, and nobody else's: another store takes them as they are."""
    maps = document("maps", "east", "north", "up")
    await keep(store, maps, EAST, NORTH, UP)
    await keep(store, document("maps", "theirs", tenant="them"), UP)
    assert await store.space("docs") == SPACE
    index, vectors = await store.fetch("docs", "default", "maps") or (None, None)
    assert index == maps
    assert np.array_equal(vectors, np.stack([EAST, NORTH, UP]))
    assert (await store.space("none"), await store.fetch("none", "default", "maps")) == (None, None)
    assert await store.fetch("docs", "default", "gone") is None


async def test_writing_twice_is_writing_once(store: Vectors):
    """An upsert replaces the chunks of the same document and number."""
    for text in ("first", "second"):
        await keep(store, document("a", text), EAST)
    assert [hit.text for hit in await store.search(near(EAST))] == ["second"]
    assert await store.count("docs", "default") == 1


async def test_a_deleted_document_leaves_nothing(store: Vectors):
    """Neither search, scroll nor count finds it; its neighbours stay; deleting again is no error."""
    await keep(store, document("gone", *["x"] * 40), *[EAST] * 40)
    await keep(store, document("stays", "y"), EAST)
    for _ in range(2):
        await store.delete("docs", "default", "gone")
    assert [hit.document_id for hit in await store.search(near(EAST, top_k=100))] == ["stays"]
    assert [kept.document_id for kept in (await store.scroll("docs", "default")).chunks] == ["stays"]
    assert await store.count("docs", "default", "gone") == 0


async def test_a_shorter_version_drops_the_tail_of_the_longer_one(store: Vectors):
    """delete(from_chunk=n) keeps the chunks before n."""
    await keep(store, document("a", "0", "1", "2"), EAST, EAST, EAST)
    await store.delete("docs", "default", "a", 1)
    assert [hit.text for hit in await store.search(near(EAST))] == ["0"]


async def test_scrolling_meets_every_chunk_once(store: Vectors):
    """Pages follow each other through `after` until it is None."""
    await keep(store, document("a", *"0123456"), *[EAST] * 7)
    await keep(store, document("b", "other"), UP)
    seen, after = [], None
    while True:
        page = await store.scroll("docs", "default", "a", after, 3)
        seen += [kept.chunk.text for kept in page.chunks]
        after = page.after
        if after is None:
            break
    assert sorted(seen) == list("0123456")


async def test_another_model_is_refused_with_both_names_and_sizes(store: Vectors):
    """Vectors of two models compare as noise, so neither writing nor searching mixes them."""
    await keep(store, document("a", "x"), EAST)
    other = Space(model="sextant", dimension=2)
    for attempt in (store.create("docs", other), store.search(near(np.ones(2, np.float32), space=other))):
        with pytest.raises(InvalidRequest, match=r"'compass' with 3 .* 'sextant' with 2 .* Set embedding.model back"):
            await attempt
    with pytest.raises(InvalidRequest, match="'compass' with 3"):  # the same size is no excuse
        await store.create("docs", Space(model="sextant", dimension=3))


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        (np.ones((1, 2), np.float32), r"takes 3 dimensions .* shape \(1, 2\)"),
        (np.ones((2, 3), np.float32), r"there are 1 chunks"),
        (np.full((1, 3), np.nan, np.float32), "NaN"),
    ],
)
async def test_vectors_that_do_not_fit_are_refused(store: Vectors, vectors: Floats, complaint: str):
    """Before anything is written."""
    await store.create("docs", SPACE)
    with pytest.raises(InvalidRequest, match=complaint):
        await store.upsert(document("a", "x"), vectors)
    assert await store.count("docs", "default") == 0


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a" * 65, "umlaut-ä", "line\n", ".new-x"])
async def test_names_that_could_leave_the_folder_are_refused(store: Vectors, name: str):
    """A collection's name becomes a folder and a part of a URL."""
    with pytest.raises(InvalidRequest, match="is no collection name"):
        await store.create(name, SPACE)
    with pytest.raises(InvalidRequest, match="is no collection name"):
        await store.search(near(EAST, name))


async def test_what_nobody_made_is_empty_and_cannot_be_written(store: Vectors):
    """Reading an unknown collection finds nothing; only `create` makes one."""
    assert await store.search(near(EAST)) == ()
    assert await store.count("docs", "default") == 0
    assert await store.scroll("docs", "default") == ((), None)
    await store.delete("docs", "default", "a")
    with pytest.raises(InvalidRequest, match="no collection 'docs'"):
        await store.upsert(document("a", "x"), np.stack([EAST]))


async def test_messages_survive_the_way_between_processes(store: Vectors):
    """A query and its vector arrive at the vector store's process as they were sent, read-only as Ray makes them."""
    await keep(store, document("a", "x"), EAST)
    query = pickle.loads(pickle.dumps(near(EAST)))
    query.vector.flags.writeable = False
    assert pickle.loads(pickle.dumps(await store.search(query)))[0].text == "x"


async def test_hostile_text_is_kept_as_it_is(store: Vectors):
    """Payloads are data: quotes, NUL, other scripts and control characters come back unchanged."""
    text = '\'; DROP TABLE\x00 "quoted" 漢字 🧨 \u202e \\'
    await keep(store, document(text, text), EAST)
    (found,) = await store.search(near(EAST))
    assert (found.document_id, found.text) == (text, text)
    await store.delete("docs", "default", text)
    assert await store.search(near(EAST)) == ()


# What only the embedded store promises


def test_tenant_and_document_are_indexed(tmp_path: Path):
    """The filter that every call starts with is looked up, and not compared chunk by chunk."""
    store = EdgeVectors(tmp_path)
    store.create("docs", SPACE)
    store.upsert(document("a", "x"), np.stack([EAST]))
    assert set(store._open["docs"].shard.info().payload_schema) == {"tenant", "document_id"}
    store.close()


async def test_a_reopened_store_holds_what_it_held(tmp_path: Path):
    """Closing and opening changes nothing."""
    for _ in range(2):
        store = VectorStore(tmp_path)
        await keep(store, document("a", "kept"), EAST)
        await store.close()
    store = VectorStore(tmp_path)
    assert [hit.text for hit in await store.search(near(EAST))] == ["kept"]
    await store.close()


WRITER = """
import sys, numpy as np
from pathlib import Path
from app.messages import Chunk, Index
from app.vectors import Space
from app.vectors_edge import EdgeVectors
store = EdgeVectors(Path(sys.argv[1]))
store.create("docs", Space(model="compass", dimension=3))
number = 0
while True:
    chunks = tuple(Chunk(number=n, text=str(n), start=0, end=1) for n in range(10))
    index = Index(collection="docs", document_id=str(number), title="", chunks=chunks)
    store.upsert(index, np.tile(np.eye(3, dtype="f4")[0], (10, 1)))
    number += 1
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_upsert_that_returned(tmp_path: Path):
    """Kill -9 while it writes; the next process finds every document that was reported, whole."""
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
        reported = 0
        while reported < 50:
            reported = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        reported = int((writer.stdout.read().split() or [reported])[-1])
    store = EdgeVectors(tmp_path)
    assert [store.count("docs", "default", str(number)) for number in range(reported)] == [10] * reported
    store.close()


def test_two_processes_never_open_the_same_folder(tmp_path: Path):
    """The second waits, then refuses and names the first; when the first leaves, the second gets it."""
    first = EdgeVectors(tmp_path)
    with pytest.raises(Misconfigured, match=f"process {os.getpid()} has used"):
        EdgeVectors(tmp_path, lock_wait_s=0.1)
    first.close()
    EdgeVectors(tmp_path, lock_wait_s=0.1).close()


def test_a_creation_cut_short_is_made_anew(tmp_path: Path):
    """A crash within `create` leaves a folder that no one mistakes for a collection."""
    store = EdgeVectors(tmp_path)
    store.create("docs", SPACE)
    store.close()
    (tmp_path / "docs" / "collection.json").unlink()  # it is written last
    store = EdgeVectors(tmp_path)
    assert store.search(near(EAST)) == ()
    store.create("docs", SPACE)
    assert store.count("docs", "default") == 0
    assert len([child for child in (tmp_path / "docs").iterdir() if child.is_dir()]) == 1
    store.close()


def test_a_damaged_shard_is_reported_and_left_alone(tmp_path: Path):
    """Unavailable, with the engine's reason; the other collections work."""
    store = EdgeVectors(tmp_path)
    for name in ("good", "bad"):
        store.create(name, SPACE)
        store.upsert(document("a", "x", collection=name), np.stack([EAST]))
    store.close()
    (config,) = (tmp_path / "bad").glob("*/edge_config.json")
    config.write_text("{")
    store = EdgeVectors(tmp_path)
    assert store.count("good", "default") == 1
    with pytest.raises(Unavailable, match="vector store"):
        store.count("bad", "default")
    store.close()
    assert config.exists()


def test_a_collection_of_another_version_is_refused_with_the_remedy(tmp_path: Path):
    """Rather than searched by half."""
    store = EdgeVectors(tmp_path)
    store.create("docs", SPACE)
    store.close()
    record = tmp_path / "docs" / "collection.json"
    record.write_text(record.read_text().replace('"version":2,', ""))
    store = EdgeVectors(tmp_path)
    with pytest.raises(Unavailable, match=r"another version of MindFu\. Remove it, and index its documents again"):
        store.count("docs", "default")
    store.close()


async def test_a_write_is_on_the_disk_after_a_rest(tmp_path: Path):
    """Some seconds after the last write there is nothing that a power cut would take."""
    store = VectorStore(tmp_path, rest_s=0.01)
    await keep(store, document("a", "x"), EAST)
    assert store._edge.dirty
    await store._upkeep
    assert not store._edge.dirty
    await store.close()


@pytest.mark.parametrize("verdict", ["adopt", "abandon"])
def test_optimising_loses_nothing_that_was_written_meanwhile(tmp_path: Path, verdict: str):
    """A child works on a copy while reads and writes go on; then the copy takes over, or is dropped."""
    store = EdgeVectors(tmp_path)
    store.create("docs", SPACE)
    for number in range(3):
        store.upsert(document(f"before-{number}", *"0123456789"), np.tile(EAST, (10, 1)))
    (before,) = (tmp_path / "docs").glob("*/")
    copy = store.fork("docs")
    store.upsert(document("during", "new"), np.stack([UP]))
    store.delete("docs", "default", "before-0")
    subprocess.run([sys.executable, "-m", "app.vectors_edge", copy], check=True)
    if verdict == "adopt":
        store.adopt("docs", copy)
    else:
        store.abandon("docs")
    for opened in range(2):  # as it is, and opened again
        assert store.count("docs", "default") == 21
        assert [hit.text for hit in store.search(near(UP))] == ["new"]
        assert list((tmp_path / "docs").glob("*/")) == [copy if verdict == "adopt" else before]
        assert store.due(1) == (() if opened == 0 else ("docs",))  # the same is not tried again at once
        store.close()
        store = EdgeVectors(tmp_path)
    store.close()


def test_what_came_while_a_copy_was_optimised_is_due_the_next_time(tmp_path: Path):
    """The copy has never seen it: 30 chunks that came meanwhile wait for an index, the 10 before were tried."""
    store = EdgeVectors(tmp_path)
    store.create("docs", SPACE)
    store.upsert(document("before", *"0123456789"), np.tile(EAST, (10, 1)))
    copy = store.fork("docs")
    store.upsert(document("during", *["x"] * 30), np.tile(UP, (30, 1)))
    subprocess.run([sys.executable, "-m", "app.vectors_edge", copy], check=True)
    store.adopt("docs", copy)
    assert (store.due(30), store.due(31)) == (("docs",), ())
    store.close()


async def test_a_collection_that_grew_slow_is_optimised_by_itself(tmp_path: Path):
    """After a rest, in a child; nobody has to ask for it."""
    store = VectorStore(tmp_path, rest_s=0.01, optimize_from=10)
    await store.create("docs", SPACE)
    (before,) = (tmp_path / "qdrant" / "docs").glob("*/")
    await keep(store, document("a", *"0123456789"), *[EAST] * 10)
    await store._upkeep
    (after,) = (tmp_path / "qdrant" / "docs").glob("*/")
    assert after != before
    assert await store.count("docs", "default") == 10
    await store.close()


async def test_both_stores_rank_alike(tmp_path: Path):
    """The same chunks and questions give the same passages with the same scores."""
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(60)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(300)]
    vectors = rng.normal(size=(300, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rankings = []
    for store in (VectorStore(tmp_path), RemoteVectors(":memory:")):
        await keep(store, document("a", *texts), *vectors)
        queries = [near(vectors[n], text=f"word{n} word{n + 1}", top_k=20) for n in range(8)]
        rankings.append([await store.search(query) for query in queries])
        await store.close()
    for edge, remote in zip(*rankings, strict=True):
        assert [hit.chunk for hit in edge] == [hit.chunk for hit in remote]
        assert [hit.score for hit in edge] == pytest.approx([hit.score for hit in remote], abs=1e-5)


# What only the remote store promises


async def test_a_server_that_is_away_is_unavailable():
    """Not an empty answer, and not a traceback."""
    store = RemoteVectors("http://127.0.0.1:9")  # nobody listens on the discard port
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await store.search(near(EAST))
    with pytest.raises(Unavailable):
        await store.check_health()
    await store.close()


async def test_a_foreign_collection_is_not_touched():
    """A collection without our record of its model was made by somebody else."""
    store = RemoteVectors(":memory:")
    await store._client.create_collection("theirs", {})
    with pytest.raises(InvalidRequest, match="was not made"):
        await store.create("theirs", SPACE)
    await store.close()
