"""Does the engine leak? Requests of every kind, a third of which are left at some moment, on random weights.

    python -m benchmarks.soak --requests 10000     # prints memory as it goes; 1,000 take some 10 s of a core

Each round is on a model of another family of tool calls. It fails where a sequence, a cell or a place in the queue is
not given back, or where memory grew by more than 2 % in the second half of a round.
"""

import argparse
import asyncio
import contextlib
import gc
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil

from app.llama.engine import Engine
from app.messages import Delta, Generate, JsonFormat, Message, Sampling, Tool
from app.settings import LLMSettings
from tests.gguf_factory import CHATML, random_adapter, random_model

ADAPTERS = (None, "one", "two")
MARKS = {
    "hermes": '<tool_call>"arguments"',
    "coder": "<tool_call><function=x><parameter=y>",
    "glm": "<tool_call><arg_key><arg_value>",
    "mistral": "[TOOL_CALLS]",
    "devstral": "[TOOL_CALLS][ARGS]",
    "llama": '<|python_tag|>"parameters":',
}
STASH = 2**20  # bytes
SIZES = {
    "window": 512, "slots": 8, "queue": 200, "cache_tokens": 2048, "prefix_memory_bytes": STASH, "batch_tokens": 64,
    "stall_s": 0.2, "speculation": 8, "threads": 1,
}  # fmt: skip
WORDS = ("the", "the low", "the lower house", "in the outer one ", "a b c ")
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer"}}}
TOOL, STRICT = Tool(name="weather", parameters=CITY), Tool(name="weather", parameters=CITY, strict=True)
KINDS: tuple[dict[str, object], ...] = (
    {},
    {},
    {"logprobs": 3},
    {"response_format": JsonFormat()},
    {"response_format": JsonFormat(json_schema=CITY), "logprobs": 0},
    {"tools": (TOOL,)},
    {"tools": (TOOL,), "tool_choice": "required"},
    {"tools": (STRICT,), "parallel_tool_calls": False},
)


class Seen(NamedTuple):
    """Bytes of memory when half of the requests were over, and at the end."""

    half: int
    end: int

    @property
    def growth(self) -> float:
        """Of the second half."""
        return self.end / self.half - 1


def mixed(dice: random.Random, number: int) -> Generate:
    """A request of some kind."""
    fields = dice.choice(KINDS)
    text = dice.choice(WORDS) * dice.randrange(1, 9)
    return Generate.model_validate(
        {
            "request_id": f"r{number}",
            "model": "m",
            "messages": (Message(role="user", content=text),),
            "sampling": Sampling(temperature=dice.choice((0, 1)), frequency_penalty=dice.choice((0, 1)), seed=number),
            "tenant": dice.choice("abc"),
            "adapter": dice.choice((None, None, *ADAPTERS)),
            "n": dice.choice((1, 1, 1, 3)),
            "max_tokens": dice.randrange(1, 40 if fields else 12),
            "stop": dice.choice(((), ("e",), ("zz", "th"))),
            **fields,
        }
    )


def model(folder: Path, family: str) -> Path:
    """Random weights behind a template of a family, which shows no tools, so that prompts stay short."""
    return random_model(folder / f"{family}.gguf", seed=3, template=f"{{# tools {MARKS[family]} #}}{CHATML}")


async def soak(engine: Engine, folder: Path, count: int, dice: random.Random) -> Seen:
    """Ask that often, in crowds of 100. Raises AssertionError where something was not given back."""
    process, seen = psutil.Process(), list[int]()
    for name in filter(None, ADAPTERS):
        await engine.load_adapter(name, random_adapter(folder / f"{name}.gguf", seed=len(name)))

    async def one(number: int) -> None:
        patience = dice.choice((0, 2, None, None, None))
        async with contextlib.aclosing(engine.generate(mixed(dice, number))) as items:
            async for item in items:
                if isinstance(item, Delta) and patience == 0:
                    return
                patience = patience and patience - 1

    async def cancelled(number: int) -> None:
        """Left before its first token, in the queue as likely as not."""
        task = asyncio.create_task(one(number))
        await asyncio.sleep(dice.choice((0, 0.001, 0.02)))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    for start in range(0, count, 100):
        crowd = range(start, min(start + 100, count))
        await asyncio.gather(*((cancelled if dice.random() < 0.1 else one)(number) for number in crowd))
        while engine.stats().slots_in_use:  # noqa: ASYNC110 — a thread sets no asyncio event
            await asyncio.sleep(0.001)
        gc.collect()
        seen.append(process.memory_info().rss)
    check(engine)
    return Seen(seen[len(seen) // 2], seen[-1])


def check(engine: Engine) -> None:
    """Whether an idle engine holds nothing but what it keeps on purpose, by llama.cpp's own account."""
    stats, context, prefixes = engine.stats(), engine._context, engine._prefixes  # noqa: SLF001 — a look inside
    assert (stats.waiting, stats.slots_in_use, stats.cells_reserved, stats.failed) == (0, 0, 0, 0), stats
    held = sum(context.held(sequence) > 0 for sequence in range(context.outputs))
    assert held == stats.kept_sequences, (held, stats)
    assert stats.stashed_bytes <= STASH, stats
    assert len(prefixes._free) + stats.kept_sequences == context.outputs, stats  # noqa: SLF001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each family")
    parser.add_argument("--families", nargs="*", choices=MARKS, default=list(MARKS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for family in options.families:
            engine = Engine(model(folder, family), LLMSettings.model_validate(SIZES))
            try:
                seen = asyncio.run(soak(engine, folder, options.requests, random.Random(1)))
                stats = engine.stats()
            finally:
                engine.close()
            left = options.requests - stats.finished
            print(f"{family}: {stats.finished} finished, {left} left, {stats.generated_tokens} tokens; ", end="")
            print(f"{seen.half / 1e6:.1f} MB at half time, {seen.end / 1e6:.1f} MB at the end ({seen.growth:+.2%})")
            assert seen.growth < 0.02, "memory grows"


if __name__ == "__main__":
    main()
