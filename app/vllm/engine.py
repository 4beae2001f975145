"""The engine: one model on vLLM, behind the same contract as app.llama.engine. For one event loop.

Prompts are made into tokens here, and answers out of tokens, by the code that llama.cpp has too: vLLM is given tokens
and grammars, and gives tokens and their likelihoods. So both engines read the same prompt, and answer in one form.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from app.deltas import Stream, joined, seeded
from app.errors import EngineFailed, InvalidRequest, MindFuError, Overloaded, Unavailable
from app.llama.answer import Answer
from app.llama.constraint import constraint
from app.llama.tokenizer import Tokenizer
from app.llama.window import answer_tokens
from app.messages import Delta, Done, Generate, Measure, ModelCard, Timings, Usage
from app.vllm.adapters import Adapter, Adapters, peft_folder
from app.vllm.guard import Guard, children
from app.vllm.reply import Reply
from app.vllm.settings import VllmSettings
from app.vllm.source import described, parameters, weights_bytes
from app.vllm.start import reason, start
from app.vllm.translate import sampling_arguments, structured_outputs
from app.vllm.vocabulary import FolderVocabulary

LOOK_S = 0.05
ENDED = "vLLM's engine process has ended"


@dataclass(slots=True)
class Stats:
    """The engine at one moment, and what it did since its start. Names as llama.cpp's, where they mean the same."""

    slots: int
    queue: int
    slots_in_use: int = 0
    waiting: int = 0
    cache_usage: float = 0.0  # share of the cache that running answers hold
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queued_s: float = 0.0


class Asked(NamedTuple):
    """A request, understood: its prompt, and for each answer what is sampled by and what reads it."""

    prompt: list[int]
    params: list[Any]
    replies: list[Reply]


class Engine:
    """Answers requests on one model. Construct it, use it from one event loop, close it.

    Construction takes minutes for large models. Raises Misconfigured where vLLM, a GPU or memory is missing.
    """

    def __init__(self, folder: Path, settings: VllmSettings) -> None:
        self._settings, self._folder = settings, folder
        self._vocabulary = FolderVocabulary(folder)
        self._tokenizer = Tokenizer(self._vocabulary, settings.tool_call_parser, settings.chat_template)
        self._adapters = Adapters(settings.name)
        self._stats = Stats(settings.slots, settings.queue)
        self._answers = 0  # asked for and not complete
        self._mean_service_s = 1.0
        self._closed = False
        before = set(children())
        self._llm = start(folder, settings, self._stat_logger)
        self._guard = Guard([child for child in children() if child not in before])

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done, None]:
        """The answers, piece by piece. Closing the generator aborts them within a step.

        Raises InvalidRequest, ContextTooLong, ModelNotFound (of an adapter), Overloaded or Unavailable before the first
        item, EngineFailed at any time.
        """
        with self._place(request.n), self._adapters.borrowed(request.adapter) as adapter:
            asked = await asyncio.to_thread(self._asked, request)
            stream = Stream(asyncio.get_running_loop())
            answering = asyncio.create_task(self._answer(request, asked, adapter, stream))
            try:
                async for item in self._flushed(stream, answering):
                    if isinstance(item, Exception):
                        raise item
                    yield item
            finally:
                self._stats.cancelled += not answering.done()
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)

    async def load_adapter(self, name: str, path: Path) -> None:
        """Let requests name a LoRA adapter. path: its GGUF, beside which PEFT's folder stands, or that folder.

        Raises InvalidRequest where the name is taken, or vLLM does not take the adapter.
        """
        if not self._settings.lora:
            raise InvalidRequest("Adapters are off: set llm.lora to true.", "adapter")
        folder = await asyncio.to_thread(peft_folder, path, self._settings.max_lora_rank)
        with self._adapters.loading(name, folder) as adapter:
            try:
                await self._llm.add_lora(_lora(adapter))
            except Exception as error:  # whatever its loader met: a wrong shape, an unknown module
                message = f"{folder} is no adapter that vLLM takes for this model: {reason(error)}."
                raise InvalidRequest(message, "adapter") from error

    async def unload_adapter(self, name: str) -> None:
        """Refuse an adapter from now on, wait for its answers, and free it. Raises ModelNotFound."""
        adapter = await self._adapters.removed(name)
        await self._llm.remove_lora(adapter.id)

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
            parameters=parameters(self._folder),
            file_bytes=weights_bytes(self._folder),
            description=described(self._folder),
            adapters=self.adapters(),
        )

    def stats(self) -> dict[str, float]:
        """For metrics."""
        in_use = min(self._answers, self._settings.slots)
        return asdict(replace(self._stats, slots_in_use=in_use, waiting=self._answers - in_use))

    def check(self) -> None:
        """Raise EngineFailed where no answer can be expected any more."""
        if self._closed or self._llm.errored:
            raise EngineFailed("the engine is closed" if self._closed else ENDED)

    async def idle(self) -> None:
        """Wait until what was asked for is complete."""
        while self._answers:  # noqa: ASYNC110 — they end one by one, each somewhere else
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """End vLLM's process; what is running fails. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._llm.shutdown()
            self._guard.close()

    # A request on its way

    @contextmanager
    def _place(self, answers: int) -> Iterator[None]:
        """Room for some more answers, beside those that run and wait. Raises Overloaded, Unavailable."""
        if self._closed:
            raise Unavailable("language model", "it is being shut down")
        waiting = max(0, self._answers - self._settings.slots)
        if self._answers and self._answers + answers > self._settings.slots + self._settings.queue:
            self._stats.refused += 1
            retry = max(1.0, (waiting + 1) * self._mean_service_s / self._settings.slots)
            raise Overloaded(waiting, self._settings.queue, retry)
        self._answers += answers
        try:
            yield
        finally:
            self._answers -= answers

    def _asked(self, request: Generate) -> Asked:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        tokens, thinking = self._tokenizer.prompt(request)
        answer = answer_tokens(request, len(tokens), self._settings.window)
        syntax = self._tokenizer.syntax if request.prompt is None else None
        rule = structured_outputs(constraint(request, syntax, thinking=thinking))
        offered = {} if request.tool_choice == "none" else {tool.name: tool.parameters for tool in request.tools}
        asked = Asked(tokens.tolist(), [], [])
        for choice in range(request.n):
            own = sampling_arguments(
                seeded(request.sampling, choice),
                answer_tokens=answer,
                logprobs=request.logprobs,
                endings=self._vocabulary.endings,
                vocab_size=self._vocabulary.vocab_size,
            )
            outputs = StructuredOutputsParams(**rule) if rule else None
            asked.params.append(SamplingParams(**own, structured_outputs=outputs, output_kind=RequestOutputKind.DELTA))
            text = Answer(request.stop, syntax, offered, thinking=thinking, parallel=request.parallel_tool_calls)
            asked.replies.append(Reply(choice, text, self._vocabulary, request.logprobs))
        return asked

    async def _answer(self, request: Generate, asked: Asked, adapter: Adapter | None, stream: Stream) -> None:
        """Put all answers into the stream, and behind them how they ended, or why they did not."""
        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                choices = range(len(asked.replies))
                tasks = [group.create_task(self._choice(request, asked, at, adapter, stream)) for at in choices]
        except* MindFuError as errors:
            self._stats.failed += 1
            stream.put(errors.exceptions[0])
        else:
            self._mean_service_s += 0.1 * (time.perf_counter() - began - self._mean_service_s)
            stream.put(self._done(asked, tasks[0].result()))

    async def _choice(
        self, request: Generate, asked: Asked, choice: int, adapter: Adapter | None, stream: Stream
    ) -> tuple[int, Timings]:
        """One answer. Returns how much of its prompt was cached, and where its time went. Raises as `generate`."""
        from vllm.inputs import tokens_input

        reply, held = asked.replies[choice], None
        output: Any = None
        prompt = tokens_input(asked.prompt, cache_salt=request.tenant)  # nobody learns what others asked
        number = f"{request.request_id}-{choice}"
        lora = _lora(adapter) if adapter else None
        try:
            async with aclosing(self._llm.generate(prompt, asked.params[choice], number, lora_request=lora)) as outputs:
                async for output in outputs:
                    new = output.outputs[0]
                    if new.finish_reason in ("abort", "error"):
                        raise EngineFailed(f"vLLM ended the answer with '{new.finish_reason}'")
                    for delta in reply.take(new.token_ids, new.logprobs, new.finish_reason):
                        held = _put(stream, held, delta)
                    if reply.end:
                        break
            if held:
                stream.put(held)
            return output.num_cached_tokens or 0, _timings(output.metrics)
        except MindFuError:
            raise
        except Exception as error:  # the edge to vLLM: whatever it raises, callers get one of our errors
            raise _translated(error) from error

    def _done(self, asked: Asked, told: tuple[int, Timings]) -> Done:
        cached, timings = told
        usage = Usage(
            prompt_tokens=len(asked.prompt),
            completion_tokens=sum(reply.generated for reply in asked.replies),
            cached_tokens=cached,
            reasoning_tokens=sum(reply.thought for reply in asked.replies),
        )
        self._stats.finished += 1
        self._stats.prompt_tokens += usage.prompt_tokens
        self._stats.cached_tokens += cached
        self._stats.generated_tokens += usage.completion_tokens
        self._stats.queued_s += timings.queued_s
        return Done(tuple(reply.end for reply in asked.replies if reply.end), usage, timings)

    async def _flushed(
        self, stream: Stream, answering: "asyncio.Task[None]"
    ) -> AsyncGenerator[Delta | Done | Exception, None]:
        """What comes: the first at once, the rest joined for `flush_s`, and the end without delay."""
        while True:
            for item in await stream.take():
                yield item
                if not isinstance(item, Delta):
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.flush_s):
                    await asyncio.shield(answering)

    def _measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        return Measure(
            prompt_tokens=len(self._tokenizer.prompt(request).tokens),
            text_tokens=tuple(map(self._tokenizer.count, texts)),
            window=self._settings.window,
        )

    def _stat_logger(self, *_: object) -> Any:
        """What vLLM tells its numbers with every step: it wants an object of a class of its own."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        stats = self._stats

        class Noted(StatLoggerBase):  # type: ignore[misc]  # untyped here
            def __init__(self) -> None:
                pass

            def record(self, scheduler_stats: Any, *_: object, **__: object) -> None:
                if scheduler_stats is not None:
                    stats.cache_usage = scheduler_stats.kv_cache_usage

            def log_engine_initialized(self) -> None:
                pass

        return Noted()


def _put(stream: Stream, held: Delta | None, delta: Delta) -> Delta | None:
    """Send a piece with what was held back before it. Returns what says nothing yet, but counts tokens."""
    if held:
        joint = joined(held, delta)
        if joint is None:
            stream.put(held)
        delta = joint or delta
    if delta.text or delta.reasoning or delta.tool_calls:
        stream.put(delta)
        return None
    return delta


def _lora(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.id, str(adapter.folder))


def _timings(metrics: Any) -> Timings:
    """Of vLLM's own clock. An answer without a token has no first one."""
    first = metrics.first_token_ts or metrics.scheduled_ts
    return Timings(
        queued_s=max(0.0, metrics.scheduled_ts - metrics.queued_ts),
        prefill_s=max(0.0, first - metrics.scheduled_ts),
        decode_s=max(0.0, metrics.last_token_ts - first),
    )


def _translated(error: Exception) -> MindFuError:
    """What vLLM raises, as the contract has it: the caller's fault is told as theirs."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        return EngineFailed(ENDED)
    if isinstance(error, VLLMClientError):
        return InvalidRequest(f"vLLM refuses this request: {reason(error)}.")
    return EngineFailed(reason(error))
