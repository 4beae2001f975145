"""Stage `export`: the recorded conversations that are wanted, as lines to learn from, and as preferences.

    python -m train.export --set since=2026-11-01 --set rating=up

Reads PostgreSQL on Ray Data: each task reads some conversations. A few are read here, which is faster than to start a
cluster. The order of lines is that of conversations' ids, so that the same conversations make the same files.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from app.conversations import Conversations
from app.errors import NotFound, NothingToLearn
from app.export import branch
from app.feedback import FeedbackStore
from app.messages import Strict
from app.postgres import open_pool
from app.settings import Secrets
from app.turns import Wanted
from train import cluster, lines, recorded, stages
from train.stages import Outcome, Stage, Work

FEW = 2_000  # conversations that are read here: about 10 s, as long as a cluster takes to start
BATCH, PAGE = 100, 1000

Row = dict[str, Any]


class Export(Strict):
    """The parameters of the stage `export`. None: any."""

    tenants: tuple[str, ...] = Field(("default",), min_length=1)
    since: datetime | None = None  # of a conversation's latest turn; without a zone in UTC
    before: datetime | None = None
    model: str | None = None  # that answered any of its turns
    rating: Literal["up", "down", "none"] | None = None  # of any of its turns
    sources: bool = False  # each answer for itself, behind the passages that the model saw; else whole conversations
    parquet: bool = False  # beside JSON Lines, the same as Parquet


def given(parameters: Export, home: Path) -> Mapping[str, str]:
    """What is there now: other turns or feedback are another export."""
    return {"database": asyncio.run(_state(parameters, home))}


def make(work: Work[Export]) -> Outcome:
    """Read, write, count."""
    parameters, folder = work.parameters, work.folder
    wanted = [
        (tenant, one) for tenant in parameters.tenants for one in asyncio.run(_ids(parameters, tenant, work.home))
    ]
    counts: Counter[str] = Counter()
    told: list[str] = []
    pairs: list[str] = []
    for done, row in enumerate(_rows(wanted, work)):
        if done % BATCH == 0:
            work.progress(done, len(wanted))
        told += row["lines"]
        pairs += row["preferences"]
        counts["conversations"] += 1
        counts["without anything to learn"] += not row["lines"]
    if not told and not pairs:
        remedy = "Rate answers up or correct them (POST /v1/feedback), or widen since, before, model and rating."
        raise NothingToLearn(f"rated or corrected answers in {counts['conversations']} conversations", 0, 1, remedy)
    counts["lines"] = lines.save(folder / "data.jsonl", told)
    counts["preferences"] = lines.save(folder / "preferences.jsonl", pairs)
    if parameters.parquet:
        for name, texts in (("data", told), ("preferences", pairs)):
            _parquet(folder / f"{name}.parquet", texts)
    return Outcome(counts)


async def read(wanted: Sequence[tuple[str, str]], home: Path, *, sources: bool) -> list[Row]:
    """The lines and preferences of conversations, as JSON text. wanted: tenants and ids; one that is gone has none."""
    pool = await open_pool(_url(), home)
    try:
        return [await _conversation(Conversations(pool), tenant, name, sources=sources) for tenant, name in wanted]
    finally:
        await pool.close()


async def _conversation(store: Conversations, tenant: str, name: str, *, sources: bool) -> Row:
    try:
        found = await store.get(tenant, name)
        needed = {turn.id for turn in (*branch(found.turns), *(turn for turn in found.turns if turn.feedback))}
        asked = {turn: await store.asked_of(tenant, turn) for turn in needed}
    except NotFound:  # deleted meanwhile
        return {"lines": [], "preferences": []}
    one = recorded.whole(found, asked, tenant)
    told = list(recorded.with_sources(found, asked, tenant)) if sources else [one] if one else []
    pairs = recorded.preferences(found, asked, tenant, sources=sources)
    return {"lines": [*map(lines.dump, told)], "preferences": [*map(lines.dump_preference, pairs)]}


def _rows(wanted: Sequence[tuple[str, str]], work: Work[Export]) -> Iterator[Row]:
    sources = work.parameters.sources
    if len(wanted) < FEW:
        for start in range(0, len(wanted), BATCH):
            yield from asyncio.run(read(wanted[start : start + BATCH], work.home, sources=sources))
        return
    with cluster.connected(work.home):
        yield from on_ray(wanted, work.home, sources=sources)


def on_ray(wanted: Sequence[tuple[str, str]], home: Path, *, sources: bool) -> Iterator[Row]:
    """The same in parallel on the Ray that is connected, in the same order."""
    import ray.data

    def batch(rows: dict[str, Any]) -> dict[str, list[str]]:
        some = list(zip(rows["tenant"].tolist(), rows["id"].tolist(), strict=True))
        return {"made": [json.dumps(row) for row in asyncio.run(read(some, home, sources=sources))]}

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    ray.data.DataContext.get_current().enable_progress_bars = False
    names = ray.data.from_items([{"tenant": tenant, "id": name} for tenant, name in wanted])
    for row in names.map_batches(batch, batch_size=BATCH, **cluster.tasks()).iter_rows():
        yield json.loads(row["made"])


async def _ids(parameters: Export, tenant: str, home: Path) -> list[str]:
    pool = await open_pool(_url(), home)
    try:
        return sorted([name async for name, _ in _listed(Conversations(pool), parameters, tenant)])
    finally:
        await pool.close()


async def _state(parameters: Export, home: Path) -> str:
    pool = await open_pool(_url(), home)
    total = hashlib.sha256()
    try:
        for tenant in parameters.tenants:
            found = sorted([one async for one in _listed(Conversations(pool), parameters, tenant)])
            total.update(json.dumps([tenant, found, await FeedbackStore(pool).state(tenant)]).encode())
    finally:
        await pool.close()
    return total.hexdigest()


async def _listed(store: Conversations, parameters: Export, tenant: str) -> AsyncIterator[tuple[str, str]]:
    """Id and latest change of each conversation that is wanted."""
    wanted = Wanted(**parameters.model_dump(include={"since", "before", "model", "rating"}))
    after = None
    while page := await store.list(tenant, limit=PAGE, after=after, wanted=wanted):
        for summary in page:
            yield summary.id, f"{summary.updated_at} {summary.turns}"
        after = page[-1]


def _parquet(path: Path, texts: Sequence[str]) -> None:
    """One column for each field; messages, tools and metadata as JSON text, because they have no common type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{name: json.dumps(value, ensure_ascii=False) for name, value in json.loads(text).items()} for text in texts]
    names = sorted({name for row in rows for name in row})
    columns = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}
    pq.write_table(pa.table(columns), path)


def _url() -> str | None:
    url = Secrets.from_env().postgres_url
    return url.get_secret_value() if url else None


STAGE = Stage(
    name="export",
    does="Recorded conversations as lines to learn from.",
    place="datasets",
    inputs=(),
    parameters=Export,
    make=make,
    given=given,
)

if __name__ == "__main__":
    stages.main(STAGE)
