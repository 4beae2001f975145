"""How fast a model is on this machine, and what it takes: measured through the engine, as requests see it."""

import asyncio
import resource
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from app.llama.engine import Engine
from app.messages import Delta, Done, Generate, Sampling
from app.settings import LLMSettings

TOGETHER = 4  # answers at the same time, in the second reading
PROBES = 5  # short questions, for the time to first token
WORDS = "one model reads a page of plain words and another writes the next line of it "


class Figures(NamedTuple):
    """What was measured. memory_bytes: what the model added to its process, mapped weights too."""

    model: str
    file_bytes: int
    load_s: float
    prompt_tokens_per_s: float
    first_token_s: float
    tokens_per_s: float
    together_tokens_per_s: float
    memory_bytes: int


def measure(model: str, path: Path, settings: LLMSettings, tokens: int) -> Figures:
    """Load a GGUF and try it. tokens: of each answer. For a process of its own. Raises Misconfigured."""
    before, began = _resident_bytes(), time.perf_counter()
    engine = Engine(path, settings)
    load_s = time.perf_counter() - began
    try:
        prompt, first, alone, together = asyncio.run(_try(engine, settings, tokens))
        took = _resident_bytes() - before
    finally:
        engine.close()
    return Figures(model, path.stat().st_size, load_s, prompt, first, alone, together, took)


async def _try(engine: Engine, settings: LLMSettings, tokens: int) -> tuple[float, float, float, float]:
    await _answer(engine, _asked("warm up", 2))
    (each,) = (await engine.measure(_asked("", 1), [WORDS])).text_tokens
    _, loaded = await _answer(engine, _asked(WORDS * max(1, settings.window // 2 // each), 1))
    first = [(await _answer(engine, _asked(f"{number}. Which word is next?", 1)))[0] for number in range(PROBES)]
    _, alone = await _answer(engine, _asked("Write.", tokens))
    began = time.perf_counter()
    questions = [_asked(f"Write number {number}.", tokens) for number in range(TOGETHER)]
    together = await asyncio.gather(*(_answer(engine, question) for question in questions))
    wall_s = time.perf_counter() - began
    return (
        loaded.usage.prompt_tokens / loaded.timings.prefill_s,
        statistics.median(first),
        alone.usage.completion_tokens / alone.timings.decode_s,
        sum(done.usage.completion_tokens for _, done in together) / wall_s,
    )


def _asked(prompt: str, tokens: int) -> Generate:
    sampling = Sampling(seed=1, ignore_eos=True)
    return Generate(request_id="bench", model="bench", prompt=prompt, max_tokens=tokens, sampling=sampling)


async def _answer(engine: Engine, request: Generate) -> tuple[float, Done]:
    """Seconds to the first item, and how it ended."""
    began, first = time.perf_counter(), 0.0
    async for item in engine.generate(request):
        first = first or time.perf_counter() - began
        if isinstance(item, Delta):
            continue
        return first, item
    raise AssertionError("every answer ends with a Done")


def _resident_bytes() -> int:
    """Linux: now; elsewhere: the most so far, which there, unlike on Linux, does not begin with the parent's."""
    now = Path("/proc/self/statm")
    if now.exists():
        return int(now.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
