"""The engine: one GGUF, one cache, many answers at a time. Asyncio outside, the step loop's thread inside."""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from pathlib import Path

from app.deltas import Stream, seeded
from app.errors import Misconfigured
from app.llama import memory
from app.llama.adapters import Adapter, Adapters
from app.llama.admission import Admission
from app.llama.answer import Answer
from app.llama.constraint import constraint
from app.llama.context import Context, Storage
from app.llama.job import Request
from app.llama.model import Model
from app.llama.prefix import PrefixCache
from app.llama.sampling import Sampler
from app.llama.steps import Limits, Stats, StepLoop
from app.llama.tokenizer import Tokenizer
from app.llama.window import answer_tokens
from app.messages import Delta, Done, Generate, Measure, ModelCard
from app.settings import LLMSettings

KEPT_SEQUENCES = 64  # beginnings that the cache can hold besides the running sequences
SMALL_BYTES = 100 * 10**6  # below this, a second thread costs more in waiting than it gains


class Engine:
    """Answers requests on one model. Construct it, use it from any event loop, close it.

    Raises Misconfigured where the settings do not fit the model or the machine.
    """

    def __init__(self, path: Path, settings: LLMSettings) -> None:
        memory.check(path, settings)
        self._settings = settings
        self._bytes = path.stat().st_size
        self._model = Model(path, settings)
        trained = self._model.trained_window
        if settings.window > trained:
            raise Misconfigured("llm.window", f"is {settings.window}, the model was trained for {trained}", "Lower it")
        self._tokenizer = Tokenizer(self._model, style=settings.chat_template)
        self._adapters = Adapters(settings.name)
        self._cells = settings.cache_tokens or settings.slots * settings.window
        keeps = self._model.keeps_every_token()
        shared = not keeps or settings.shares_cells
        sequences = settings.slots + (KEPT_SEQUENCES if keeps and shared else 0)
        threads = settings.threads or default_threads(self._bytes)
        self._context = Context(
            self._model,
            cells=self._cells,
            sequences=sequences,
            batch_tokens=settings.batch_tokens,
            threads=threads,
            shared=shared,
            storage=Storage(settings.cache_type_k, settings.cache_type_v, settings.flash_attention),
        )
        kept = settings.window if settings.prefix_tokens is None else settings.prefix_tokens
        self._prefixes = PrefixCache(
            self._context,
            sequences=sequences,
            limit=kept if keeps and shared else 0,
            stash=settings.prefix_memory_bytes,
            shares=keeps and kept > 0,
        )
        self._steps = StepLoop(
            self._model,
            self._context,
            Admission(slots=settings.slots, cells=self._cells, queue=settings.queue),
            self._prefixes,
            Limits(settings.flush_s, settings.stall_s, settings.speculation if keeps else 0),
        )

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done, None]:
        """The answers, piece by piece. Closing the generator frees their slots within a step.

        Raises InvalidRequest, ContextTooLong, ModelNotFound (of an adapter), Overloaded or Unavailable before the first
        item, EngineFailed at any time.
        """
        self._steps.knock()
        stream = Stream(asyncio.get_running_loop())
        with self._adapters.borrowed(request.adapter) as adapter:
            asked = await asyncio.to_thread(self._request, request, stream, adapter)
            self._steps.enter(asked)
            try:
                while True:
                    for item in await stream.take():
                        if isinstance(item, Exception):
                            raise item
                        yield item
                        if isinstance(item, Done):
                            return
            finally:
                self._steps.leave(asked)

    async def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> None:
        """Let requests name a LoRA adapter, a GGUF. What runs stands still while it is read.

        Raises InvalidRequest where the name is taken, or the file is no adapter for this model.
        """

        def load() -> None:
            self._adapters.add(Adapter(self._model, name, path, scale, self._tokenizer.style))

        with self._adapters.loading(name):
            await _done(self._steps.call(load))

    async def unload_adapter(self, name: str) -> None:
        """Refuse an adapter from now on, wait for its answers, and free it. Raises ModelNotFound."""
        adapter = self._adapters.remove(name)

        def release() -> None:
            self._prefixes.disown(adapter)
            self._context.release(adapter)

        await _done(adapter.unused)
        await _done(self._steps.call(release))

    def adapters(self) -> tuple[str, ...]:
        """The names of those that are loaded."""
        return self._adapters.names()

    async def measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        """Token counts of the prompt that a request renders to, and of each text alone."""
        return await asyncio.to_thread(self._measure, request, texts)

    def card(self) -> ModelCard:
        """What is served."""
        return ModelCard(
            name=self._settings.name,
            window=self._settings.window,
            parameters=self._model.parameters,
            file_bytes=self._bytes,
            description=self._model.description(),
        )

    def stats(self) -> Stats:
        """For metrics."""
        return self._steps.stats()

    def check(self) -> None:
        """Raise EngineFailed where no answer can be expected any more."""
        self._steps.check(self._settings.step_timeout_s)

    def close(self) -> None:
        """Fail what is running, and free the cache; the model goes when the last request lets go of it."""
        self._steps.close()
        self._context.close()

    def _request(self, request: Generate, stream: Stream, adapter: Adapter | None) -> Request:
        prompt, thinking = self._tokenizer.prompt(request)
        answer = answer_tokens(request, len(prompt), self._settings.window)
        width = min(request.n, self._settings.slots, (self._cells - len(prompt)) // answer)
        asked = Request(prompt, answer, stream, adapter, request.tenant, request.logprobs, width=width)
        syntax = self._tokenizer.syntax if request.prompt is None else None
        rule = constraint(request, syntax, thinking=thinking)
        offered = {} if request.tool_choice == "none" else {tool.name: tool.parameters for tool in request.tools}
        for choice in range(request.n):
            text = Answer(request.stop, syntax, offered, thinking=thinking, parallel=request.parallel_tool_calls)
            asked.answer(text, Sampler(seeded(request.sampling, choice), self._model, answer, rule))
        return asked

    def _measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        return Measure(
            prompt_tokens=len(self._tokenizer.prompt(request).tokens),
            text_tokens=tuple(map(self._tokenizer.count, texts)),
            window=self._settings.window,
        )


async def _done(future: Future[None]) -> None:
    """Wait for what another thread does, and does also when nobody waits."""
    await asyncio.shield(asyncio.wrap_future(future))


def default_threads(model_bytes: int) -> int:
    """One for a small model, else the CPUs that this process may use.

    More threads than free CPUs make decoding collapse, because llama.cpp's threads spin while they wait.
    """
    if model_bytes < SMALL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
