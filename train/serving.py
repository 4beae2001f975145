"""A base and an adapter on the engine that serves: what they say, how likely they find given answers, how fast.

The same model file, template, adapter format and cache as in app/llama, in this process.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.answer import gather
from app.errors import ContextTooLong, InvalidRequest
from app.llama.engine import Engine, default_threads
from app.llama.scoring import Scorer
from app.llama.tokenizer import Tokenizer
from app.messages import Delta, Done, Generate, Message, Sampling, Tool
from app.settings import LLMSettings
from train.lessons import Lesson

ADAPTER = "tuned"  # the adapter's name in our own engine


class Question(NamedTuple):
    """What is asked. id: of the conversation that it is from."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


class Said(NamedTuple):
    """An answer. ended: by itself; problem: why there is none. Times in seconds."""

    message: Message
    ended: bool
    tokens: int
    first_s: float
    seconds: float
    problem: str | None = None


def settings_for(path: Path, settings: LLMSettings) -> LLMSettings:
    """An engine's settings for a file, of which nothing else of the configuration is taken."""
    return settings.model_copy(update={"model": str(path), "speculation": 0})


async def answers(
    path: Path, adapter: Path | None, questions: Sequence[Question], settings: LLMSettings, *, max_tokens: int
) -> list[Said]:
    """Greedy answers, as many at a time as the engine has slots. adapter: a GGUF LoRA, None for the bare base."""
    engine = Engine(path, settings_for(path, settings))
    free = asyncio.Semaphore(settings.slots)
    try:
        if adapter is not None:
            await engine.load_adapter(ADAPTER, adapter)

        async def ask(number: int, question: Question) -> Said:
            request = Generate(
                request_id=f"evaluate-{number}",
                model=settings.name,
                adapter=ADAPTER if adapter else None,
                messages=question.messages,
                tools=question.tools,
                sampling=Sampling(temperature=0.0),
                max_tokens=max_tokens,
                clip=True,
            )
            async with free:
                return await _said(engine, request)

        return list(await asyncio.gather(*(ask(number, question) for number, question in enumerate(questions))))
    finally:
        engine.close()


async def _said(engine: Engine, request: Generate) -> Said:
    started = time.perf_counter()
    first, deltas, done = 0.0, list[Delta](), None
    try:
        async with aclosing(engine.generate(request)) as items:
            async for item in items:
                first = first or time.perf_counter() - started
                if isinstance(item, Done):
                    done = item
                else:
                    deltas.append(item)
    except (ContextTooLong, InvalidRequest) as error:
        return Said(Message(role="assistant"), ended=False, tokens=0, first_s=0.0, seconds=0.0, problem=str(error))
    assert done is not None
    (choice,) = gather(deltas, 1)
    ended = done.finish_reason != "length"
    return Said(choice.message(), ended, done.usage.completion_tokens, first, time.perf_counter() - started)


def likelihoods(
    path: Path, adapters: Sequence[Path | None], lessons: Sequence[Lesson], settings: LLMSettings
) -> list[list[NDArray[np.float32]]]:
    """Of each adapter and lesson: the log-probabilities of the learnt tokens, each after all before it."""
    threads = settings.threads or default_threads(path.stat().st_size)
    with Scorer(path, settings_for(path, settings), threads=threads) as scorer:
        return [
            [scorer.score(lesson.tokens, adapter)[np.asarray(lesson.learnt[1:], bool)] for lesson in lessons]
            for adapter in adapters
        ]


def differing(path: Path, settings: LLMSettings, questions: Sequence[Question], lessons: Sequence[Lesson]) -> list[str]:
    """Where serving would ask otherwise than training did: prompts of other tokens, turns that end otherwise.

    lessons: of the questions with their answers, in their order, each learning the last answer alone.
    """
    problems = []
    with Scorer(path, settings_for(path, settings), threads=1) as scorer:
        tokenizer = Tokenizer(scorer.model, style=settings.chat_template)
        for question, lesson in zip(questions, lessons, strict=True):
            request = Generate(request_id="parity", model="m", messages=question.messages, tools=question.tools)
            prompt = [int(token) for token in tokenizer.prompt(request).tokens]
            begin = lesson.learnt.index(True)
            if prompt != lesson.tokens[:begin]:
                at = next((i for i, pair in enumerate(zip(prompt, lesson.tokens, strict=False)) if pair[0] != pair[1]),
                          min(len(prompt), begin))  # fmt: skip
                problems.append(f"{question.id}: the prompt differs from token {at} of {begin}")
            last = max(place for place, learnt in enumerate(lesson.learnt) if learnt)
            if not scorer.model.ends(lesson.tokens[last]):
                problems.append(f"{question.id}: its last token, {lesson.tokens[last]}, ends no answer when served")
    return problems
