"""The step loop: in its own thread, every step decodes one batch for all running sequences and samples each of them.

A batch holds the newest token of every answer in progress, and then as much of the prompts of new requests as fits,
so that a long prompt does not stall the others. Only this thread touches the context; everybody else enters and
leaves jobs. A cancelled job is gone before the next step begins.
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from app.errors import EngineFailed, Overloaded
from app.llama.admission import Admission
from app.llama.context import NO_ROOM, Context
from app.llama.job import Item, Job, Stream, share_prefill
from app.llama.model import Model
from app.llama.sampling import Sampler
from app.messages import FinishReason

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Stats:
    """The engine at one moment, and what it did since its start."""

    slots: int
    cells: int  # tokens that the cache holds
    queue: int  # places for those that wait
    slots_in_use: int = 0
    cells_reserved: int = 0  # by the requests in slots, for their longest possible answers
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0  # for want of a place in the queue
    prompt_tokens: int = 0  # of admitted requests
    generated_tokens: int = 0
    queued_s: float = 0.0  # summed over admitted requests
    steps: int = 0
    step_s: float = 0.0


class StepLoop:
    """Runs jobs over one context until closed. flush_s: how long deltas of an answer are joined, but the first."""

    def __init__(self, model: Model, context: Context, admission: Admission[Job], flush_s: float) -> None:
        self._model, self._context, self._admission, self._flush_s = model, context, admission, flush_s
        self._change = threading.Condition()  # guards admission, _admitted, _closing and the stats that others write
        self._admitted: list[Job] = []  # have a slot, and the thread has not seen them
        self._jobs: list[Job] = []  # the thread's own, in order of admission
        self._outgoing: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Item]]] = defaultdict(list)
        self._flushed = 0.0
        self._mean_service_s = 1.0  # of a job in its slot, moving
        self._closing = False
        self._step_began = 0.0  # 0 between steps
        self._stats = Stats(admission.slots, admission.cells, admission.queue)
        self._thread = threading.Thread(target=self._run, name="llama-steps", daemon=True)
        self._thread.start()

    # For any thread

    def knock(self) -> None:
        """Raise Overloaded at once where a job would be refused anyway, before anybody makes one."""
        with self._change, self._counting_refusals():
            self._admission.knock(self._retry_after_s())

    def enter(self, job: Job) -> None:
        """Begin with a job, now or when its turn comes. Raises Overloaded, or EngineFailed after a close."""
        with self._change, self._counting_refusals():
            if self._closing:
                raise EngineFailed("the engine is closed")
            self._admission.enter(job, self._retry_after_s())
            if job.slot >= 0:
                self._admit([job])

    def leave(self, job: Job) -> None:
        """Nobody waits for this job any more: free what it holds before the next step. A job that is over stays so."""
        with self._change:
            if job.over or job.cancelled:
                return
            job.cancelled = True
            self._stats.cancelled += 1
            if job.slot < 0:
                job.over = True
                self._admit(self._admission.leave(job))
            self._change.notify()

    def stats(self) -> Stats:
        """The numbers of this moment, a copy."""
        with self._change:
            admission = self._admission
            return replace(
                self._stats,
                slots_in_use=admission.slots - len(admission.free_slots),
                cells_reserved=admission.cells - admission.free_cells,
                waiting=len(admission.waiting),
            )

    def check(self, step_timeout_s: float) -> None:
        """Raise EngineFailed where the loop has ended, or one step takes longer than this."""
        if not self._thread.is_alive():
            raise EngineFailed("the step loop has ended")
        began = self._step_began
        if began and time.perf_counter() - began > step_timeout_s:
            raise EngineFailed(f"a decode step has not come back within {step_timeout_s:.0f} s")

    def close(self) -> None:
        """End after the current step. Jobs that are not over fail."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()

    # With the lock held

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except Overloaded:
            self._stats.refused += 1
            raise

    def _admit(self, jobs: list[Job]) -> None:
        now = time.perf_counter()
        for job in jobs:
            job.admitted = now
            self._stats.queued_s += now - job.entered
            self._stats.prompt_tokens += len(job.prompt)
        self._admitted += jobs
        self._change.notify()

    def _retry_after_s(self) -> float:
        ahead = len(self._admission.waiting) + 1
        return max(1.0, ahead * self._mean_service_s / self._admission.slots)

    # The thread

    def _run(self) -> None:
        while self._await_work():
            self._step_began = time.perf_counter()
            try:
                self._step()
            except Exception as error:  # the loop's edge: whatever it is, it ends these jobs and not the loop
                log.exception("A step failed")
                self._context.rows = 0
                self._fail(self._jobs, str(error))
            self._stats.steps += 1
            self._stats.step_s += time.perf_counter() - self._step_began
            self._step_began = 0.0
        with self._change:
            unfinished = [*self._jobs, *self._admitted, *self._admission.waiting]
        self._jobs += self._admitted
        self._fail(unfinished, "the engine is closed")

    def _await_work(self) -> bool:
        with self._change:
            while not (self._jobs or self._admitted or self._closing):
                self._change.wait()
            entered, self._admitted = self._admitted, []
        for job in entered:
            job.sampler = Sampler(job.sampling, self._model, job.answer_tokens)
        self._jobs += entered
        for job in [job for job in self._jobs if job.cancelled]:
            self._retire(job)
        return not self._closing

    def _step(self) -> None:
        context = self._context
        batch = [(job, 1) for job in self._jobs if job.answering]
        for job, _ in batch:
            job.row = context.add_token(job.slot, job.token, job.fed)
        chunks = share_prefill([job for job in self._jobs if not job.answering], context.size - len(batch))
        if chunks:
            self._flush(everything=True)  # the step will be a long one
        for job, share in chunks:
            last = share == job.left
            row = context.add_chunk(job.slot, job.prompt[job.fed : job.fed + share], job.fed, last=last)
            job.row = row if last else -1
        batch += chunks
        if not batch:
            return
        code = context.decode()
        if code:
            self._decode_failed([job for job, _ in batch], code)
            return
        for job, share in batch:
            job.fed += share
            if job.row >= 0 and not job.cancelled:
                self._advance(job)
        self._flush()

    def _advance(self, job: Job) -> None:
        """Sample the next token of an answer, and end the answer where that ends it."""
        assert job.sampler is not None
        job.token = job.sampler.sample(self._context, job.row)
        if not job.answering:
            job.answering = time.perf_counter()
        if self._model.ends(job.token):
            self._finish(job, "stop")
            return
        job.generated += 1
        self._stats.generated_tokens += 1
        job.add(job.text.push(self._model.piece(job.token)), tokens=1)
        if job.text.stopped:
            self._finish(job, "stop")
        elif job.generated == job.answer_tokens:
            self._finish(job, "length")

    def _finish(self, job: Job, reason: FinishReason) -> None:
        job.add(job.text.finish(), tokens=0)
        if job.unsent_text or job.unsent_tokens:
            self._send(job, job.unsent())
        self._send(job, job.done(reason))
        service_s = time.perf_counter() - job.admitted
        self._mean_service_s += 0.1 * (service_s - self._mean_service_s)
        self._stats.finished += 1
        self._retire(job)

    def _decode_failed(self, jobs: list[Job], code: int) -> None:
        """Without room nothing was decoded, and the youngest makes room for the rest; else none of them can go on."""
        if code == NO_ROOM:
            jobs = [max(jobs, key=lambda job: job.admitted)]
        log.error("llama_decode returned %d for a batch of %d sequences", code, len(jobs))
        self._fail(jobs, f"llama.cpp could not decode the batch, code {code}")

    def _fail(self, jobs: list[Job], reason: str) -> None:
        for job in list(jobs):
            self._stats.failed += not job.cancelled
            self._send(job, EngineFailed(reason))
            self._retire(job)
        self._flush()

    def _retire(self, job: Job) -> None:
        """Free everything that a job holds; whoever waited for it moves up."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._context.forget(job.slot)
        if job.sampler is not None:
            job.sampler.close()
            job.sampler = None
        with self._change:
            job.over = True
            self._admit(self._admission.leave(job))

    def _send(self, job: Job, item: Item) -> None:
        self._outgoing[job.stream.loop].append((job.stream, item))

    def _flush(self, *, everything: bool = False) -> None:
        """Hand out first deltas at once, others when flush_s is over; one wake-up for each event loop."""
        now = time.perf_counter()
        due = everything or now - self._flushed >= self._flush_s
        for job in self._jobs:
            if job.unsent_text and (due or not job.sent):
                self._send(job, job.unsent())
        if due:
            self._flushed = now
        for loop, items in self._outgoing.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # the loop was closed: nobody is left to read
                log.debug("An event loop ended before its streams")
        self._outgoing = defaultdict(list)


def _deliver(items: list[tuple[Stream, Item]]) -> None:
    for stream, item in items:
        stream.put(item)
