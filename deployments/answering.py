"""The life of one request: find the conversation and the passages, build the prompt, stream the answer, keep the turn.

An answer that ended was kept: the turn is recorded before `Done` is passed on, and also when the client leaves or the
engine fails. Nothing here knows a dialect.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from ray.serve.handle import DeploymentHandle

from app.answer import Choice, gather
from app.conversations import Place, Turn, TurnStatus
from app.errors import EngineFailed, MindFuError
from app.keys import Key
from app.limits import Limiter
from app.memory import COLLECTION
from app.messages import Delta, Done, Generate, Measure, Message, Passage, RagOptions, Search
from app.prompt import augment, source_text, sources_block, within_budget
from app.recorder import Recorder
from app.settings import RagSettings
from app.shelves import Shelved
from app.tools.kit import NONE, Kit
from app.tools.loop import ToolLoop
from app.tools.runner import ToolRun
from app.truncation import without_first
from app.turns import DROPPED
from deployments.calls import call, stream
from deployments.metrics import Metrics
from deployments.recall import Recall
from deployments.shadowing import Shadows

OPTIONS = frozenset({
    "tools", "tool_choice", "parallel_tool_calls", "response_format", "thinking", "n", "logprobs",
})  # fmt: skip
"""What was asked of the engine that a turn has no column for: kept in its extras where it is not the default."""

SEAMS = 8  # tokens that texts may cost beyond their own when they are joined


@dataclass(frozen=True)
class Within:
    """Files of vector stores, to be searched instead of what `rag` says. files: by document; least: of a score."""

    stores: tuple[str, ...]
    files: Mapping[str, Shelved]
    top_k: int | None = None
    least: float | None = None


@dataclass(frozen=True)
class Ask:
    """A parsed request. rag: None takes the settings. key: it came with; extras: what is only kept with the turn.

    dropped: so many of the oldest messages belong to the conversation, and the model is not shown them.
    stream: somebody reads the answer as it comes.
    """

    generate: Generate
    rag: bool | RagOptions | None = None
    within: Within | None = None
    conversation_id: str | None = None
    client: str | None = None
    key: Key | None = None
    kit: Kit = NONE  # the server's tools, which are among those of `generate`
    extras: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    stream: bool = True

    @property
    def shown(self) -> tuple[Message, ...]:
        """The messages that the model is shown, without passages."""
        return without_first(self.generate.messages, self.dropped) if self.dropped else self.generate.messages


@dataclass(frozen=True)
class Opened:
    """The first item of an answer, sent when nothing can be refused any more. conversation_id: None if not known.

    adapter: the version that answers, None is the bare base.
    """

    sources: tuple[Passage, ...]
    conversation_id: str | None
    adapter: str | None = None


@dataclass
class Draft:
    """What is known of a turn while it is being answered."""

    place: Place | None
    sources: tuple[Passage, ...]
    started: float  # performance counter
    created_at: datetime
    turn_id: str = field(default_factory=lambda: str(uuid4()))
    first_token_s: float | None = None
    deltas: list[Delta] = field(default_factory=list)
    loop: ToolLoop | None = None


class Answering:
    """Answers requests through the LLM, the retriever and the recorder.

    adapter: what answers for a model's name in a conversation, None where nobody knows which one it is. shadows: ask
    adapters on trial the same again.
    """

    def __init__(
        self,
        llm: DeploymentHandle,
        retriever: DeploymentHandle,
        recorder: Recorder,
        rag: RagSettings,
        timeout_s: float,
        metrics: Metrics,
        limiter: Limiter | None = None,
        *,
        adapter: Callable[[str, str | None], str | None] = lambda _model, _conversation: None,
        shadows: Shadows | None = None,
    ) -> None:
        self.limiter, self.adapter, self.shadows = limiter, adapter, shadows
        self.llm, self.recall, self.recorder = llm, Recall(retriever, recorder), recorder
        self.rag, self.timeout_s, self.metrics = rag, timeout_s, metrics
        self.background: set[asyncio.Task[Any]] = set()  # recordings that outlive their request

    async def answer(self, ask: Ask) -> AsyncGenerator[Opened | Delta | ToolRun | Done]:
        """Opened, then deltas and calls of the server's tools, then Done. Every refusal is raised before Opened.

        Raises the typed errors of the parts. Closing the iterator stops the engine within one step.
        """
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        async with self._in_time(deadline):
            draft = await self._prepare(ask)
        conversation = _conversation(ask, draft.place)
        adapter = self.adapter(ask.generate.model, conversation)  # from here on; a promotion meanwhile changes nothing
        ask = replace(ask, generate=ask.generate.model_copy(update={"adapter": adapter, "stream": ask.stream}))
        prompt = ask.generate.model_copy(update={"messages": augment(ask.shown, draft.sources, self.rag.placement)})
        status: TurnStatus = "cancelled"
        done, error, opened, refused = None, None, False, False
        recording: asyncio.Task[None] | None = None
        try:
            async with aclosing(self._said(ask, prompt, draft)) as items:
                while True:
                    async with self._in_time(deadline):
                        item = await anext(items, None)
                    if item is None:
                        raise EngineFailed("its stream ended without a final record")
                    if not opened:
                        opened = True
                        draft.first_token_s = time.perf_counter() - draft.started
                        self.metrics.stage("first_token", draft.first_token_s)
                        yield Opened(draft.sources, draft.place.conversation_id if draft.place else None, adapter)
                    if isinstance(item, Done):
                        done, status = item, "truncated" if item.finish_reason == "length" else "complete"
                        break
                    if isinstance(item, ToolRun):
                        self.metrics.stage("tool", item.duration_s)
                    else:
                        draft.deltas.append(item)
                    yield item
        except Exception as exc:
            status, error = "failed", str(exc) if isinstance(exc, MindFuError) else type(exc).__name__
            refused = not opened and isinstance(exc, MindFuError) and exc.status != EngineFailed.status
            raise
        finally:
            if not refused:  # one that was refused before it began is no turn; one that broke or was left is
                recording = self._in_background(self._record(ask, draft, status, done, error))
        assert recording is not None
        await asyncio.shield(recording)
        if self.shadows and draft.loop is None:  # what tools do is not done twice
            self.shadows.follow(prompt, conversation, draft.turn_id)
        yield done

    async def close(self) -> None:
        """Wait for the recordings that are under way."""
        if self.shadows:
            await self.shadows.close()
        await asyncio.gather(*self.background, return_exceptions=True)

    def _said(self, ask: Ask, prompt: Generate, draft: Draft) -> AsyncGenerator[Delta | ToolRun | Done]:
        """What the model says, and the calls of the server's tools that it makes on the way."""

        def generate(asked: Generate) -> AsyncGenerator[Delta | Done]:
            return stream("language model", self.llm, "generate", asked)

        if ask.kit.loop is None:
            return generate(prompt)
        draft.loop = ask.kit.loop(generate)
        return draft.loop.answer(prompt)

    @asynccontextmanager
    async def _in_time(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            raise EngineFailed(f"no answer within {self.timeout_s:g} s") from None

    async def _prepare(self, ask: Ask) -> Draft:
        started, created_at = time.perf_counter(), datetime.now(UTC)
        search, locating = self._search(ask), self.metrics.timed("locate", self._locate(ask))
        found: tuple[Passage, ...] = ()
        if search is None:
            place = await locating
        elif COLLECTION in search.collections:  # memory must know which conversation is held
            place = await locating
            found = await self.metrics.timed("retrieve", self._remember(search, place))
        else:
            place, found = await asyncio.gather(locating, self.metrics.timed("retrieve", self.recall.search(search)))
        if ask.within is not None:
            found = _of_files(found, ask.within)
        asked = ask.generate.model_copy(update={"messages": ask.shown})
        return Draft(place, await self._fitting(asked, found), started, created_at)

    async def _locate(self, ask: Ask) -> Place | None:
        request = ask.generate
        if request.prompt is not None:
            return None
        key_id = ask.key.id if ask.key else None
        return await self.recorder.locate(request.tenant, request.messages, ask.conversation_id, key_id)

    def _search(self, ask: Ask) -> Search | None:
        """What to look for. None: nothing."""
        query = next((message.content for message in reversed(ask.generate.messages) if message.role == "user"), "")
        if ask.within is not None and query.strip():
            return Search(
                query=query,
                tenant=ask.generate.tenant,
                collections=ask.within.stores,
                top_k=ask.within.top_k or self.rag.top_k,
                min_score=self.rag.min_score if ask.within.least is None else -1.0,
                neighbours=self.rag.neighbours,
                only=tuple(ask.within.files),
            )
        wanted = ask.rag if isinstance(ask.rag, RagOptions) else RagOptions()
        enabled = self.rag.enabled if ask.rag is None else bool(ask.rag)
        if not enabled or not query.strip():
            return None
        memory = self.rag.memory and wanted.collections is None if wanted.memory is None else wanted.memory
        collections = wanted.collections or self.rag.collections
        return Search(
            query=query,
            tenant=ask.generate.tenant,
            collections=(*collections, COLLECTION) if memory else collections,
            top_k=wanted.top_k or self.rag.top_k,
            min_score=self.rag.min_score if wanted.min_score is None else wanted.min_score,
            neighbours=self.rag.neighbours,
        )

    async def _remember(self, search: Search, place: Place | None) -> tuple[Passage, ...]:
        """What memory is worth depends on PostgreSQL: while that is away, the answer comes from documents alone."""
        if place is not None:
            return await self.recall.search(search, place.conversation_id)
        others = tuple(name for name in search.collections if name != COLLECTION)
        return await self.recall.search(search.model_copy(update={"collections": others})) if others else ()

    async def _fitting(self, request: Generate, found: tuple[Passage, ...]) -> tuple[Passage, ...]:
        """The best passages within the budget: that of the settings, and what the answer leaves of the window. Where
        nobody insists on its length, that is half of what is free.
        """
        if not found:
            return ()
        blocks = (f"\n\n{source_text(number, passage)}" for number, passage in enumerate(found, start=1))
        texts = (sources_block(()), *blocks)  # the fence alone, then each passage with its separator
        measure: Measure = await self.metrics.timed(
            "measure", call("language model", self.llm, "measure", request, texts)
        )
        free = measure.window - measure.prompt_tokens
        answer = request.max_tokens or free // 2
        answer = min(answer, free // 2) if request.clip else answer
        budget = min(self.rag.token_budget, free - answer) - measure.text_tokens[0] - SEAMS
        return within_budget(found, measure.text_tokens[1:], budget)

    async def _record(self, ask: Ask, draft: Draft, status: TurnStatus, done: Done | None, error: str | None) -> None:
        request = ask.generate
        messages = request.messages
        if request.prompt is not None:
            messages = (Message(role="user", content=request.prompt),)
        first, *others = gather(draft.deltas, request.n)
        turn = Turn(
            id=draft.turn_id,
            request_id=request.request_id,
            tenant=request.tenant,
            conversation_id=draft.place.conversation_id if draft.place else ask.conversation_id,
            client=ask.client,
            model=request.model,
            adapter=request.adapter,
            messages=messages,
            answer=first.message(),
            sources=draft.sources,
            placement=self.rag.placement,
            sampling=request.sampling,
            stop=request.stop,
            max_tokens=request.max_tokens,
            usage=done.usage if done else None,
            timings=done.timings if done else None,
            first_token_s=draft.first_token_s,
            latency_s=time.perf_counter() - draft.started,
            finish_reason=done.finish_reason if done else None,
            status=status,
            error=error,
            extras=ask.extras
            | _dropped(ask)
            | _options(request, ask.kit, draft.loop)
            | _alternatives(others)
            | ({"key_id": ask.key.id} if ask.key else {}),
            created_at=draft.created_at,
        )
        self.metrics.answered(turn)
        if ask.key and self.limiter:  # who leaves before the end pays for what was answered
            usage = done.usage if done else None
            answered = sum(delta.tokens for delta in draft.deltas)
            await self.limiter.charge(ask.key, usage.prompt_tokens + usage.completion_tokens if usage else answered)
        await self.metrics.timed("record", self.recorder.record(turn))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task


def _conversation(ask: Ask, place: Place | None) -> str | None:
    """What a request belongs to, by its id; a bare prompt to itself alone. None: PostgreSQL is away."""
    alone = ask.generate.request_id if ask.generate.prompt is not None else None
    return place.conversation_id if place else ask.conversation_id or alone


def _of_files(found: Sequence[Passage], within: Within) -> tuple[Passage, ...]:
    """Passages as those of the files that clients know. Below the least score there are none."""
    return tuple(
        passage.model_copy(update={"document_id": file.upload_id, "title": file.name})
        for passage in found
        if (file := within.files.get(passage.document_id)) and passage.score >= (within.least or 0.0)
    )


def _dropped(ask: Ask) -> dict[str, Any]:
    return {DROPPED: ask.dropped} if ask.dropped else {}


def _options(request: Generate, kit: Kit, loop: ToolLoop | None) -> dict[str, Any]:
    """What was asked of the engine; which tools were the server's, which calls ran, what the model saw of them."""
    asked = request.model_dump(mode="json", include=set(OPTIONS), exclude_defaults=True)
    if loop is None:
        return asked
    steps = [message.model_dump(mode="json", exclude_defaults=True) for message in loop.messages]
    runs = {"tool_runs": [run.kept() for run in loop.runs], "steps": steps} if steps else {}
    return asked | {"server_tools": [tool.name for tool in kit.tools]} | runs


def _alternatives(choices: Sequence[Choice]) -> dict[str, Any]:
    """The answers beside the first, which is the one that a conversation goes on from."""
    kept = [choice.message().model_dump(mode="json", exclude_defaults=True) for choice in choices]
    return {"alternatives": kept} if kept else {}
