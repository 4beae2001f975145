"""The step loop: in its own thread, every step decodes for running sequences and samples each of them.

A step decodes as much of the prompts of new requests as fits the time that running answers may have to wait, and the
newest token of every answer in progress, with a draft of the next ones where that pays. All of it is of one adapter;
adapters take turns. Only this thread touches the context; everybody else enters and leaves requests. What a
cancelled one holds is free before the next step begins.
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from app.deltas import Item, Stream
from app.errors import EngineFailed, Overloaded
from app.llama.adapters import Adapter
from app.llama.admission import Admission
from app.llama.context import NO_ROOM, Context
from app.llama.job import Job, Request, share_prefill
from app.llama.model import Model
from app.llama.pace import FEWEST_ROWS, Pace
from app.llama.prefix import PrefixCache
from app.llama.sampling import logprob
from app.llama.speculation import continuation, worthwhile
from app.llama.stash import common_prefix
from app.llama.turns import Turns

WORTH_WAITING = 32  # tokens of a prompt
MARGIN = 0.8  # of the time that a step may take: it is planned by a mean, and some take longer
log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """How the loop shares its time. flush_s: how long deltas of an answer are joined, but the first.

    stall_s: how long a running answer may stand still while prompts load or other adapters have their turns;
    speculation: draft tokens of one answer in a step.
    """

    flush_s: float = 0.0
    stall_s: float = 0.5
    speculation: int = 0


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
    cached_tokens: int = 0  # of them, that needed no prefill
    kept_tokens: int = 0  # that finished requests left in the cache, common beginnings counted once
    kept_sequences: int = 0
    evictions: int = 0  # of kept sequences, whose place was needed
    stashed_bytes: int = 0  # of those that left the cache
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the drafted ones
    adapter_switches: int = 0
    queued_s: float = 0.0  # summed over admitted requests
    steps: int = 0  # batches that were decoded
    step_s: float = 0.0


class StepLoop:
    """Runs requests over one context until closed."""

    def __init__(
        self, model: Model, context: Context, admission: Admission[Request], prefixes: PrefixCache, limits: Limits
    ) -> None:
        self._model, self._context, self._admission, self._limits = model, context, admission, limits
        self._prefixes, self._pace = prefixes, Pace(context.size)
        self._turns = Turns[Adapter | None](limits.stall_s)
        self._change = threading.Condition()  # guards admission, _admitted, _chores, _closing, stats that others write
        self._admitted: list[Request] = []  # and the thread has not seen them
        self._chores: list[tuple[Callable[[], None], Future[None]]] = []
        self._jobs: list[Job] = []  # the thread's own, in order of admission
        self._patient: list[Request] = []  # admitted; they wait for a beginning that another one loads
        self._outgoing: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Item]]] = defaultdict(list)
        self._flushed = 0.0
        self._gaps = False  # in the step before, between sequences that have cells of their own
        self._mean_service_s = 1.0  # of a request that was admitted, moving
        self._closing = False
        self._busy_since = 0.0  # with the present step; 0 while there is nothing to do
        self._stats = Stats(admission.slots, admission.cells, admission.queue)
        self._thread = threading.Thread(target=self._run, name="llama-steps", daemon=True)
        self._thread.start()

    # For any thread

    def knock(self) -> None:
        """Raise Overloaded at once where a request would be refused anyway, before anybody makes one."""
        with self._change, self._counting_refusals():
            self._admission.knock(self._retry_after_s())

    def enter(self, request: Request) -> None:
        """Begin with a request, now or when its turn comes.

        Raises Overloaded, or EngineFailed after a close.
        """
        with self._change, self._counting_refusals():
            if self._closing:
                raise EngineFailed("the engine is closed")
            self._admission.enter(request, self._retry_after_s())
            if request.admitted:
                self._admit([request])

    def leave(self, request: Request) -> None:
        """Nobody waits for it any more: free what it holds before the next step. What is over stays so."""
        with self._change:
            if request.over or request.cancelled:
                return
            request.cancelled = True
            self._stats.cancelled += 1
            if not request.admitted:
                self._end(request)
            self._change.notify()

    def call(self, chore: Callable[[], None]) -> Future[None]:
        """Have the thread do something between two steps. Raises EngineFailed after a close."""
        future: Future[None] = Future()
        with self._change:
            if self._closing:
                raise EngineFailed("the engine is closed")
            self._chores.append((chore, future))
            self._change.notify()
        return future

    def stats(self) -> Stats:
        """The numbers of this moment, a copy."""
        with self._change:
            admission, prefixes = self._admission, self._prefixes.counts
            return replace(
                self._stats,
                slots_in_use=admission.slots - admission.free_slots,
                cells_reserved=admission.cells - admission.free_cells,
                waiting=len(admission.waiting),
                cached_tokens=prefixes.hit_tokens,
                kept_tokens=prefixes.kept_tokens,
                kept_sequences=prefixes.kept_sequences,
                evictions=prefixes.evictions,
                stashed_bytes=prefixes.stashed_bytes,
            )

    def check(self, step_timeout_s: float) -> None:
        """Raise EngineFailed where the loop has ended, or one step takes longer than this."""
        if not self._thread.is_alive():
            raise EngineFailed("the step loop has ended")
        began = self._busy_since
        if began and time.perf_counter() - began > step_timeout_s:
            raise EngineFailed(f"a decode step has not come back within {step_timeout_s:.0f} s")

    def close(self) -> None:
        """End after the current step. Requests that are not over fail."""
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

    def _admit(self, requests: list[Request]) -> None:
        now = time.perf_counter()
        for request in requests:
            request.admitted_at = now
            self._stats.queued_s += now - request.entered_at
            self._stats.prompt_tokens += len(request.prompt)
        self._admitted += requests
        self._change.notify()

    def _end(self, request: Request) -> None:
        request.over = True
        self._admit(self._admission.leave(request))

    def _retry_after_s(self) -> float:
        ahead = len(self._admission.waiting) + 1
        return max(1.0, ahead * self._mean_service_s / self._admission.slots)

    # The thread: what there is to do

    def _run(self) -> None:
        while self._await_work():
            if self._jobs:
                began = time.perf_counter()
                try:
                    self._step(began)
                except Exception as error:  # the loop's edge: whatever it is, it ends these requests and not the loop
                    log.exception("A step failed")
                    self._fail({job.request for job in self._jobs}, str(error))
                self._stats.step_s += time.perf_counter() - began
            self._busy_since = 0.0
        with self._change:
            running = [job.request for job in self._jobs]
            unfinished = {*running, *self._patient, *self._admitted, *self._admission.waiting}
            chores, self._chores = self._chores, []
        for _, future in chores:
            future.set_exception(EngineFailed("the engine is closed"))
        self._fail(unfinished, "the engine is closed")

    def _await_work(self) -> bool:
        with self._change:
            while not (self._jobs or self._patient or self._admitted or self._chores or self._closing):
                self._change.wait()
            entered, self._admitted = self._admitted, []
            chores, self._chores = self._chores, []
        self._busy_since = time.perf_counter()
        for request in {job.request for job in self._jobs if job.request.cancelled}:
            self._retire(request, keep=True)
        patient, self._patient = [*self._patient, *entered], []
        for request in patient:
            self._begin(request)
        for chore, future in chores:
            _do(chore, future)
        return not self._closing

    def _begin(self, request: Request) -> None:
        if request.cancelled:
            self._retire(request, keep=False)
            return
        if self._is_loading(request):
            self._patient.append(request)
            return
        job = request.jobs[len(request.ends)]
        running = [other.holding for other in self._jobs if other.request.owner == request.owner]
        job.begin(*self._prefixes.begin(request.owner, request.prompt, running))
        if not request.ends:
            request.cached_tokens = job.fed
        self._jobs.append(job)

    def _is_loading(self, request: Request) -> bool:
        """Whether much of how a prompt begins is being loaded for another: it is soon there to share."""
        if not self._prefixes.shares:
            return False
        loading = (job for job in self._jobs if job.left and job.request.owner == request.owner)
        return any(common_prefix(job.request.prompt, request.prompt) - job.fed >= WORTH_WAITING for job in loading)

    # The thread: one step

    def _step(self, began: float) -> None:
        context, adapters = self._context, dict.fromkeys(job.request.adapter for job in self._jobs)
        adapter = self._turns.next(list(adapters), began)
        switch = context.use(adapter)
        self._stats.adapter_switches += switch
        jobs = [job for job in self._jobs if job.request.adapter is adapter]
        answering = [job for job in jobs if job.answering]
        loading = [job for job in jobs if not job.answering]
        if not context.shared:
            self._close_gaps()
        if not loading:
            self._pass(answering, [], known=not switch, speculate=True)
            return
        self._flush(everything=True)  # the step will be a long one
        room = self._room_for_prompts(loading, len(answering), self._turns.turn_s(len(adapters)))
        if context.shared:
            self._pass(answering, share_prefill(loading, room), known=not switch)
            return
        # passes of their own in any batch, so first tokens need not wait for those of others
        self._pass([], share_prefill(loading, room), known=not switch)
        if answering := [job for job in self._jobs if job.request.adapter is adapter and job.answering]:
            self._pass(answering, [], known=True)

    def _pass(
        self, answering: list[Job], chunks: list[tuple[Job, int]], *, known: bool, speculate: bool = False
    ) -> None:
        """Decode one batch. chunks: prompts, and how many of their tokens; known: whether its time tells of others."""
        began, context = time.perf_counter(), self._context
        self._stats.steps += 1
        context.clear()
        self._add_answers(answering, speculate=speculate)
        for job, share in chunks:
            last = share == job.left
            chunk = job.history[job.fed : job.fed + share]
            job.row = context.add(job.sequence, chunk, job.fed, outputs=int(last)) + share - 1
        if not self._decode([*answering, *(job for job, _ in chunks)]):
            return
        for job in answering:
            self._take(self._go_on, job)
        for job, share in chunks:
            job.fed += share
            if not job.left:
                self._take(self._start_answers, job)
        if known:
            self._pace.observe(context.rows, time.perf_counter() - began)
        self._flush()

    def _close_gaps(self) -> None:
        """Have the running sequences be neighbours again, where for two steps nobody came to fill a gap."""
        scattered = [job for job in self._jobs if job.sequence >= len(self._jobs)]
        if scattered and self._gaps:
            for job in scattered:
                job.sequence = self._prefixes.close_gap(job.sequence)
        self._gaps = bool(scattered)

    def _add_answers(self, jobs: list[Job], *, speculate: bool) -> None:
        """Put the newest token of each answer into the batch, and behind it as much of its draft as pays."""
        rows, limit = len(jobs), self._limits.speculation if speculate else 0
        room = self._context.outputs - rows
        plain = []
        for job in jobs:
            job.tried, job.draft = 0, []
            longest = min(limit, room, job.request.answer_tokens - job.generated - 1)
            if longest > 0:
                job.draft = continuation(job.history[: job.known], longest)
            if job.draft:
                job.tried = worthwhile(job.luck.rate, longest, rows=rows, seconds=self._seconds(len(jobs)))
            if job.tried:
                rows, room = rows + job.tried, room - job.tried
                job.row = self._context.add(job.sequence, [job.token, *job.draft[: job.tried]], job.fed)
            else:
                plain.append(job)
        first = self._context.add_each(
            [job.sequence for job in plain], [job.token for job in plain], [job.fed for job in plain]
        )
        for row, job in enumerate(plain, first):
            job.row = row

    def _seconds(self, answers: int) -> Callable[[int], float]:
        """The time of a step by its rows. Drafts of sequences with cells of their own take a pass of their own."""
        if self._context.shared or answers == 1:
            return self._pace.seconds
        return lambda rows: self._pace.seconds(answers) + (self._pace.seconds(rows - answers) if rows > answers else 0)

    def _room_for_prompts(self, loading: list[Job], answers: int, turn_s: float) -> int:
        """How many tokens of prompts a step takes, so that running answers stand still for no longer than a turn.

        The time is planned with a margin, which goes to whoever is through with it.
        """
        if not any(job.answering for job in self._jobs):
            return self._context.size
        beside = answers if self._context.shared else 0
        apart_s = 0.0 if self._context.shared else self._pace.seconds(answers)
        planned, most = (self._pace.rows_within(seconds - apart_s) - beside for seconds in (MARGIN * turn_s, turn_s))
        soonest = min(job.left for job in loading)
        return min(self._context.size - beside, max(planned, min(soonest, most), FEWEST_ROWS))

    def _decode(self, jobs: list[Job]) -> bool:
        """Decode the batch; what finished requests left makes room for it. False where these jobs cannot go on."""
        while (code := self._context.decode()) == NO_ROOM and self._prefixes.evict():
            pass
        if code:
            self._decode_failed(jobs, code)
        return code == 0

    def _take(self, draw: Callable[[Job], None], job: Job) -> None:
        """Draw from what was decoded. Where that fails, it fails for this request and for no other."""
        if job.request.over:
            return  # a sibling failed
        try:
            draw(job)
        except EngineFailed as error:
            self._fail({job.request}, error.reason)

    def _start_answers(self, loaded: Job) -> None:
        """A prompt is in the cache: as many answers as there is room for begin there, each with a draw of its own."""
        request = loaded.request
        request.answering_at = request.answering_at or time.perf_counter()
        together = request.jobs[loaded.choice : loaded.choice + request.width]
        for job in together[1:]:
            sequence = self._prefixes.take()
            self._context.copy(loaded.sequence, sequence)
            job.begin(sequence, loaded.fed)
            job.row = loaded.row
            self._jobs.append(job)
        for job in together:
            job.answering = True
            self._advance(job)
            if job.over:
                self._finish(job)

    def _go_on(self, job: Job) -> None:
        """Draw the next token of an answer, and further ones as long as they are what its draft says."""
        held = 0
        self._advance(job)
        while held < job.tried and not job.over and job.token == job.draft[held]:
            held, job.row = held + 1, job.row + 1
            self._advance(job)
        job.fed += 1 + held
        if held < job.tried:
            self._context.cut(job.sequence, job.fed)
        if job.draft and not job.over:
            seen = held if job.tried else int(job.token == job.draft[0])  # a draft that was not tried teaches too
            job.luck.learn(seen, failed=seen < max(job.tried, 1))
        self._stats.drafted_tokens += job.tried
        self._stats.accepted_tokens += held
        if job.over:
            self._finish(job)

    def _advance(self, job: Job) -> None:
        """Draw the next token of an answer from its row, and say where that ends it."""
        assert job.sampler is not None
        token = job.sampler.sample(self._context, job.row)
        if token is None:
            job.end("length")  # the vocabulary cannot spell what must follow
            return
        if self._model.ends(token):
            job.end("stop")
            return
        job.append(token)
        self._stats.generated_tokens += 1
        thinking = job.text.thinking
        piece = job.text.push(self._model.piece(token))
        job.thought += thinking and job.text.thinking
        job.sampler.follow(job.text.calling)
        top = job.request.logprobs
        told = () if top is None else (logprob(self._model, self._context.logits(job.row), token, top),)
        job.add(piece, 1, told)
        if job.text.stopped is not None or job.text.complete:
            job.end("stop")
        elif job.generated == job.request.answer_tokens:
            job.end("length")

    # The thread: what is over

    def _finish(self, job: Job) -> None:
        """An answer is complete, and with the last one its request."""
        request = job.request
        while piece := job.text.finish():
            job.add(piece, tokens=0)
        for delta in job.take():
            self._send(request, delta)
        if request.ends[job.choice].finish_reason == "stop" and (job.text.calls or job.text.broken):
            job.end("length" if job.text.broken else "tool_calls")
        self._release(job, keep=True)
        if len(request.ends) < len(request.jobs):
            if len(request.ends) % request.width == 0:
                self._begin(request)  # the next ones take the places of these
            return
        self._send(request, request.done())
        service_s = time.perf_counter() - request.admitted_at
        self._mean_service_s += 0.1 * (service_s - self._mean_service_s)
        self._stats.finished += not request.cancelled
        with self._change:
            self._end(request)

    def _decode_failed(self, jobs: list[Job], code: int) -> None:
        """Without room nothing was decoded, and the youngest makes room for the rest; else none of them can go on."""
        requests = {job.request for job in jobs}
        if code == NO_ROOM:
            requests = {max(requests, key=lambda request: request.admitted_at)}
        log.error("llama_decode returned %d for a batch of %d sequences", code, len(jobs))
        self._fail(requests, f"llama.cpp could not decode the batch, code {code}")

    def _fail(self, requests: set[Request], reason: str) -> None:
        for request in requests:
            self._stats.failed += not request.cancelled
            self._send(request, EngineFailed(reason))
            self._retire(request, keep=False)
        self._flush()

    def _retire(self, request: Request, *, keep: bool) -> None:
        """Free everything that a request holds; whoever waited for it moves up. keep: what the cache holds is good."""
        for job in request.jobs:
            self._release(job, keep=keep)
        with self._change:
            if not request.over:
                self._end(request)

    def _release(self, job: Job, *, keep: bool) -> None:
        if job.sampler is not None:
            job.sampler.close()
            job.sampler = None
        if job.sequence < 0:
            return
        self._jobs.remove(job)
        if keep:
            self._prefixes.keep(job.holding._replace(tokens=job.history[: job.fed].copy()))
        else:
            self._prefixes.drop(job.sequence)
        job.sequence = -1

    def _send(self, request: Request, item: Item) -> None:
        self._outgoing[request.stream.loop].append((request.stream, item))

    def _flush(self, *, everything: bool = False) -> None:
        """Hand out first deltas at once, others when flush_s is over; one wake-up for each event loop."""
        now = time.perf_counter()
        due = everything or now - self._flushed >= self._limits.flush_s
        for job in self._jobs:
            if job.worth_sending and (due or not job.sent):
                for delta in job.take():
                    self._send(job.request, delta)
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


def _do(chore: Callable[[], None], future: Future[None]) -> None:
    future.set_running_or_notify_cancel()
    try:
        chore()
    except Exception as error:  # noqa: BLE001 — it belongs to whoever waits for the future
        future.set_exception(error)
    else:
        future.set_result(None)
