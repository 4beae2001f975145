"""The library of the server on this machine: documents go through Ray Data, and are written by its librarian.

    sources → Reading (here: the files are) → Embedding (a pool, anywhere) → the librarian → outcomes

Reading cuts in the children of app/reading.py; embedding runs in processes of its own, which give way to everything
else, so that questions are answered as before (both are in deployments/stages.py); this process hands what is done to
the librarian, who writes it as every upload. The graph has all CPUs, by Ray's counting, so the stages ask for none.

Starting the stages takes seconds, so a few documents go to the librarian as uploads do.
"""

import hashlib
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.errors import MindFuError, NotFound, Unavailable
from app.ingestion import Held, Outcome, held_of, metadata_of, refused, taken
from app.messages import Added, Metadata
from app.prepared import Prepared
from app.sources import Source, read
from deployments.joining import Part, hush
from deployments.stages import Embedding, Plan, Reading, unpacked

BULK_DOCUMENTS = 8  # one document is embedded by one process
BULK_BYTES = 400_000  # 1,000 chunks: 36 s in the one process of the server; 18 s in two, after a start of 12
PAGE_BYTES = 20_000  # of a web page, whose size nobody knows before
BLOCK = 16  # sources that a reading process is given at once
PAGE = 1000
TRIES, RETRY_S = 6, 5.0  # of writing


class Cluster:
    """One collection of one tenant of the graph that runs in the Ray that we are a driver of.

    workers: processes that embed; None: one for each CPU of the cluster.
    """

    def __init__(
        self,
        home: Path,
        *,
        tenant: str = "default",
        collection: str = "default",
        metadata: Metadata | None = None,
        private: bool = False,
        workers: int | None = None,
    ) -> None:
        self._librarian = Part("Librarian")
        self._plan = Plan(
            home,
            tenant,
            collection,
            metadata or {},
            private,
            self._librarian.ask("settings"),
            Part("Embedder").ask("settings"),
        )
        self._workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def held(self) -> Iterator[Held]:
        """See app/ingestion.py."""
        after: str | None = None
        while True:
            page = self._librarian.ask("list", self._plan.tenant, self._plan.collection, PAGE, after)
            yield from map(held_of, page)
            if len(page) < PAGE:
                return
            after = page[-1].id

    def send(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        """See app/ingestion.py."""
        return (self._in_bulk if worth_the_start(sources) else self._one_by_one)(sources, known)

    def delete(self, document: str) -> None:
        """See app/ingestion.py."""
        try:
            self._librarian.ask("delete", self._plan.tenant, document)
        except NotFound:
            return

    def _one_by_one(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        with ThreadPoolExecutor(self._plan.documents.readers, "send") as pool:
            yield from pool.map(lambda source: self._add(source, known), sources)

    def _add(self, source: Source, known: Mapping[str, str]) -> Outcome:
        plan = self._plan
        try:
            content = read(source, max_bytes=plan.documents.max_bytes, private=plan.private)
            if there := known.get(hashlib.sha256(content.data).hexdigest()):
                return Outcome(source.uri, "duplicate", document=there)
            metadata = metadata_of(source, plan.metadata)
            arguments = (content.name, content.media_type, content.data, None, metadata)
            return taken(source, self._librarian.ask("add_file", plan.tenant, plan.collection, *arguments))
        except MindFuError as error:
            return refused(source, error)

    def _in_bulk(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        """The stages as Ray Data runs them: all at the same time, each with no more before it than it can take."""
        hush()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # byte: a block is one row, so whoever is idle gets the next parcel
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        rows = [{"row": pickle.dumps(sources[start : start + BLOCK])} for start in range(0, len(sources), BLOCK)]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))  # from_arrow waits for a CPU, and none is free
        stages: list[tuple[Any, tuple[object, ...], int, Any]] = [
            (Reading, (self._plan, dict(known)), 1, here),
            (Embedding, (self._plan,), self._workers, "SPREAD"),
        ]
        for stage, arguments, size, where in stages:
            data = data.map_batches(
                stage,
                fn_constructor_args=arguments,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=0,
                batch_format="pyarrow",
                scheduling_strategy=where,
            )
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for parcel in unpacked(batch):
                yield from self._written(parcel)

    def _written(self, parcel: Sequence[tuple[Source, Prepared] | Outcome]) -> Iterator[Outcome]:
        """Hand a parcel to the librarian. What it could not be asked about is tried again."""
        yield from (one for one in parcel if isinstance(one, Outcome))
        waiting = [one for one in parcel if not isinstance(one, Outcome)]
        for left in reversed(range(TRIES)):
            answers = self._add_prepared([prepared for _, prepared in waiting]) if waiting else ()
            again = [isinstance(answer, Unavailable) and left > 0 for answer in answers]
            for (source, _), answer, later in zip(waiting, answers, again, strict=True):
                if not later:
                    yield refused(source, answer) if isinstance(answer, MindFuError) else taken(source, answer)
            waiting = list(compress(waiting, again))
            if not waiting:
                break
            time.sleep(RETRY_S)  # what died is being replaced

    def _add_prepared(self, prepared: list[Prepared]) -> Sequence[Added | MindFuError]:
        try:
            answers: Sequence[Added | MindFuError] = self._librarian.ask("add_prepared", prepared)
        except Unavailable as error:
            return [error] * len(prepared)
        return answers


def worth_the_start(sources: Sequence[Source]) -> bool:
    """Whether several processes embed them sooner, their start counted, than the server's own one."""
    size = sum(PAGE_BYTES if source.size is None else source.size for source in sources)
    return len(sources) >= BULK_DOCUMENTS and size >= BULK_BYTES
