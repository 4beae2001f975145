"""Backup and restore, on real stores: what is asked after a restore is answered as before."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.archive import Archive, Manifest, extract, writing
from app.backup import Stores, backup
from app.errors import Conflict, InvalidRequest, Unavailable
from app.messages import Index
from app.postgres import open_pool
from app.postgres_dump import dump
from app.postgres_home import PostgresHome
from app.registry import Registry
from app.restore import restore
from app.vectors import Floats, Space, Vectors
from app.vectors_remote import RemoteVectors
from deployments.vector_store import VectorStore
from tests.gateway import Whole, whole

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect", "ignore:Local mode performs exact"),
]


@dataclass
class Backup:
    """One archive, and what its home answered."""

    place: str
    manifest: Manifest
    key: str
    answers: dict[str, object]


@pytest.fixture(scope="module")
async def taken(tmp_path_factory: pytest.TempPathFactory) -> Backup:
    """A backup of a home in which people worked, taken after it was closed. The home is gone."""
    folder = tmp_path_factory.mktemp("backup")
    home = folder / "home"
    async with whole(home) as gateway:
        key = await fill(gateway, folder)
        answers = await asked(gateway, key)
    async with store_of(home) as store:
        place, manifest = await backup(Stores(None, home, store), str(folder / "backups"))
    return Backup(place, manifest, key, answers)


async def fill(gateway: Whole, folder: Path) -> str:
    """Documents and conversations of two tenants, two adapters, an MLflow. Returns the key of one of the tenants."""
    keys = [await gateway.key(tenant) for tenant in ("acme", "umbrella")]
    for key, name in zip(keys, ("Bob", "Eve"), strict=True):
        async with gateway.http(key) as http:
            for text in (f"{name} repairs the coffee machine.", "The printer is on the third floor."):
                (await http.post("/v1/documents", json={"content": text})).raise_for_status()
            chat = {"model": "mindfu-demo", "messages": [{"role": "user", "content": "hello"}]}
            (await http.post("/v1/chat/completions", json=chat)).raise_for_status()
    registry = Registry(gateway.gateway.recorder.pool, gateway.home)
    inside = gateway.home / "adapters" / "mindfu-demo" / "v1.gguf"
    inside.parent.mkdir(parents=True)
    for version, file in (("v1", inside), ("v2", folder / "elsewhere.gguf")):
        file.write_bytes(b"GGUF" + version.encode())
        await registry.add("mindfu-demo", version, file)
    (gateway.home / "mlflow").mkdir()
    with sqlite3.connect(gateway.home / "mlflow" / "mlflow.db") as database:
        database.execute("create table runs (name text)")
        database.execute("insert into runs values ('first')")
    database.close()
    return keys[0]


async def asked(gateway: Whole, key: str) -> dict[str, object]:
    """What a client sees."""
    async with gateway.http(key) as http:
        query = {"query": "who repairs the coffee machine", "min_score": 0.1}
        found = (await http.post("/v1/documents/query", json=query)).raise_for_status().json()
        documents = (await http.get("/v1/documents")).raise_for_status().json()
        conversations = (await http.get("/v1/conversations")).raise_for_status().json()
    rounded = json.loads(json.dumps(found), parse_float=lambda number: round(float(number), 5))
    return {"found": rounded, "documents": documents, "conversations": conversations}


@asynccontextmanager
async def store_of(home: Path) -> AsyncIterator[VectorStore]:
    store = VectorStore(home)
    yield store
    await store.close()


def store_in(gateway: Whole) -> Vectors:
    """The vector store that a gateway's documents go to."""
    retriever: Any = gateway.gateway.retriever
    return retriever._part._vectors


async def test_a_restored_home_answers_the_same_query_with_the_same_passages(taken: Backup, tmp_path: Path):
    """With their scores; documents, conversations, keys, adapters wherever they lay, and MLflow are back, too."""
    assert taken.manifest.facts.incomplete == ()
    counts = {"conversations": 2, "turns": 2, "documents": 4, "adapters": 2}
    assert taken.manifest.facts.counts.items() >= counts.items()
    assert "Bob repairs" in str(taken.answers["found"])
    assert "Eve" not in str(taken.answers)
    async with store_of(tmp_path) as store:
        await restore(Stores(None, tmp_path, store), taken.place)
    async with whole(tmp_path) as gateway:
        assert await asked(gateway, taken.key) == taken.answers
        adapters = {one.version: tmp_path / one.path for one in (await gateway.gateway.registry.desired()).adapters}
        assert {version: file.read_bytes() for version, file in adapters.items()} == {"v1": b"GGUFv1", "v2": b"GGUFv2"}
        async with gateway.http(taken.key) as http:  # whose file is there, and goes
            (document, *_) = (await http.get("/v1/documents")).json()["data"]
            files = list((tmp_path / "files").rglob(document["id"]))
            assert len(files) == 1
            assert (await http.delete(f"/v1/documents/{document['id']}")).status_code == 200
            assert not files[0].exists()
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as database:
        assert database.execute("select * from runs").fetchall() == [("first",)]
    database.close()
    assert scratch_in(tmp_path) == []


async def test_an_archive_goes_into_stores_by_url(
    taken: Backup, tmp_path: Path, pool: asyncpg.Pool, postgres_home: Path
):
    """What began embedded can move to servers; and a second restore into the same ones is refused."""
    url = await new_database(pool, postgres_home)
    vectors = RemoteVectors(":memory:")
    await restore(Stores(url, tmp_path / "a", vectors), taken.place)
    assert not (tmp_path / "a" / "postgres").exists()
    assert not (tmp_path / "a" / "qdrant").exists()
    restored = await open_pool(url, tmp_path / "a")
    rows = await restored.fetch("select tenant, collection, id, chunks from documents where state = 'ready'")
    await restored.close()
    assert len(rows) == 4
    assert [await vectors.count(row["collection"], row["tenant"], row["id"]) for row in rows] == [1] * 4
    with pytest.raises(Conflict, match=r"vector store has a collection '\w+' already"):
        await restore(Stores(url, tmp_path / "b", vectors), taken.place)
    await vectors.close()
    with pytest.raises(Conflict, match=r"has \d+ tables"):
        await restore(Stores(url, tmp_path / "b", RemoteVectors(":memory:")), taken.place)
    assert list((tmp_path / "b").iterdir()) == []


async def new_database(pool: asyncpg.Pool, postgres_home: Path) -> str:
    await pool.execute("drop database if exists restored")
    await pool.execute("create database restored")
    return f"postgresql://postgres:a%20secret@/restored?host={PostgresHome(postgres_home).run}"


@pytest.mark.parametrize("held", ["qdrant/default/collection.json", "postgres/data/PG_VERSION", "keys/pepper"])
async def test_a_restore_never_writes_over_data(taken: Backup, tmp_path: Path, held: str):
    """The home is refused by what it holds, and stays as it was."""
    (tmp_path / held).parent.mkdir(parents=True)
    (tmp_path / held).write_text("precious")
    with pytest.raises(Conflict, match="is there already, and a restore never writes over data"):
        await restore(Stores(None, tmp_path, RemoteVectors(":memory:")), taken.place)
    assert files_in(tmp_path) == [tmp_path / held]


@pytest.mark.parametrize(
    ("migrations", "said"),
    [({9999: "ab"}, "with schema 9999, this release knows"), ({1: "ab"}, "another line of MindFu")],
)
async def test_an_archive_of_a_newer_release_is_refused(
    taken: Backup, tmp_path: Path, migrations: dict[int, str], said: str
):
    """Before anything is written: schemas are never brought backwards."""
    folder = tmp_path / "old"
    facts = extract(taken.place, folder).facts
    with writing(str(tmp_path / "newer.tar")) as archive:
        _add_all(archive, folder)
        archive.close(facts.model_copy(update={"migrations": facts.migrations | migrations}))
    with pytest.raises(InvalidRequest, match=said):
        await restore(Stores(None, tmp_path / "home", RemoteVectors(":memory:")), str(tmp_path / "newer.tar"))
    assert list((tmp_path / "home").iterdir()) == []


def scratch_in(folder: Path) -> list[Path]:
    return list(folder.glob("restore-*"))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _add_all(archive: Archive, folder: Path) -> None:
    for file in files_in(folder):
        archive.add(str(file.relative_to(folder)), file)


class Meddled:
    """A vector store of which somebody deletes a document while it is read."""

    def __init__(self, store: Vectors) -> None:
        self._store, self.fetched = store, 0

    async def space(self, collection: str) -> Space | None:
        return await self._store.space(collection)

    async def fetch(self, collection: str, tenant: str, document_id: str) -> tuple[Index, Floats] | None:
        self.fetched += 1
        if self.fetched == 1:
            await self.meddle()
        return await self._store.fetch(collection, tenant, document_id)

    async def meddle(self) -> None:
        raise NotImplementedError


async def test_a_backup_is_of_one_moment_although_a_document_is_deleted_meanwhile(tmp_path: Path):
    """It is taken again: a document that the database knows has its chunks, and no other has."""
    async with whole(tmp_path / "home") as gateway, gateway.http() as http:
        store = store_in(gateway)
        ids = [(await http.post("/v1/documents", json={"content": f"text {n}"})).json()["id"] for n in "123"]

        class Deleting(Meddled):
            async def meddle(self) -> None:
                assert (await http.delete(f"/v1/documents/{ids[0]}")).status_code == 200
                assert (await http.delete(f"/v1/documents/{ids[2]}")).status_code == 200

        vectors: Vectors = Deleting(store)  # type: ignore[assignment]
        place, manifest = await backup(Stores(None, tmp_path / "home", vectors), str(tmp_path / "b.tar"))
        assert (manifest.facts.incomplete, manifest.facts.counts["documents"]) == ((), 1)
        await store.delete("default", "default", ids[1])  # behind everybody's back
        _, manifest = await backup(Stores(None, tmp_path / "home", store), str(tmp_path / "c.tar"))
        assert manifest.facts.incomplete == (f"chunks of {ids[1]}",)
    new = RemoteVectors(":memory:")
    await restore(Stores(None, tmp_path / "new", new), place)
    assert [await new.count("default", "default", one) for one in ids] == [0, 1, 0]
    await new.close()


async def test_pg_dump_says_why_it_could_not(tmp_path: Path):
    """In PostgreSQL's own words, without the password."""
    with pytest.raises(Unavailable) as raised:
        await dump("postgresql://bob:hush@127.0.0.1:1/x", tmp_path, tmp_path / "dump", snapshot="00000003-0000001B-1")
    assert "Connection refused" in str(raised.value)
    assert "hush" not in str(raised.value)
