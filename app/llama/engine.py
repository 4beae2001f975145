"""The engine: one GGUF, one cache, many answers at a time. Asyncio outside, the step loop's thread inside."""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from app.errors import ContextTooLong, InvalidRequest, Misconfigured
from app.llama.admission import Admission
from app.llama.context import Context
from app.llama.job import Job, Stream
from app.llama.model import Model
from app.llama.steps import Stats, StepLoop
from app.llama.text import AnswerText
from app.llama.tokenizer import Tokenizer
from app.messages import Delta, Done, Generate, Measure, ModelCard
from app.settings import LLMSettings

SMALL_BYTES = 100 * 10**6  # below this, a second thread costs more in waiting than it gains


class Engine:
    """Answers requests on one model. Construct it, use it from any event loop, close it.

    Raises Misconfigured where the settings do not fit the model or the machine.
    """

    def __init__(self, path: Path, settings: LLMSettings) -> None:
        self._settings = settings
        self._bytes = path.stat().st_size
        self._model = Model(path, gpu_layers=settings.gpu_layers)
        trained = self._model.trained_window
        if settings.window > trained:
            raise Misconfigured("llm.window", f"is {settings.window}, the model was trained for {trained}", "Lower it")
        self._tokenizer = Tokenizer(self._model)
        cells = settings.cache_tokens or settings.slots * settings.window
        threads = settings.threads or default_threads(self._bytes)
        self._context = Context(
            self._model, cells=cells, slots=settings.slots, batch_tokens=settings.batch_tokens, threads=threads
        )
        admission = Admission[Job](slots=settings.slots, cells=cells, queue=settings.queue)
        self._steps = StepLoop(self._model, self._context, admission, settings.flush_s)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done, None]:
        """The answer, piece by piece. Closing the generator frees its slot within a step.

        Raises InvalidRequest, ContextTooLong or Overloaded before the first item, EngineFailed at any time.
        """
        self._steps.knock()
        stream = Stream(asyncio.get_running_loop())
        job = await asyncio.to_thread(self._job, request, stream)
        self._steps.enter(job)
        try:
            while True:
                for item in await stream.take():
                    if isinstance(item, Exception):
                        raise item
                    yield item
                    if isinstance(item, Done):
                        return
        finally:
            self._steps.leave(job)

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

    def _job(self, request: Generate, stream: Stream) -> Job:
        if "" in request.stop:
            raise InvalidRequest("A stop string must not be empty.", "stop")
        prompt, window = self._tokenizer.prompt(request), self._settings.window
        if not len(prompt):
            raise InvalidRequest("The prompt is empty.", "prompt")
        answer = max(1, window - len(prompt)) if request.max_tokens is None else request.max_tokens
        if len(prompt) + answer > window:
            raise ContextTooLong(len(prompt), answer, window)
        return Job(prompt, answer, request.sampling, AnswerText(request.stop), stream)

    def _measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        return Measure(
            prompt_tokens=len(self._tokenizer.prompt(request)),
            text_tokens=tuple(map(self._tokenizer.count, texts)),
            window=self._settings.window,
        )


def default_threads(model_bytes: int) -> int:
    """One for a small model, else the CPUs that this process may use.

    More threads than free CPUs make decoding collapse, because llama.cpp's threads spin while they wait.
    """
    if model_bytes < SMALL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
