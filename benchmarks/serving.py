"""What the graph costs over the engine alone: tokens/s and time to first token, and where each millisecond goes.

    python -m benchmarks.serving [--tokens 64] [--rounds 3] [--clients 1 8 32]

One run, one GGUF, three ways: (a) the engine in this process, (b) the whole graph over HTTP with RAG off, (c) with RAG
on. Turns are recorded in PostgreSQL in (b) and (c). Ratios are to (a) of the same run. Also prints how long the graph
takes to start, and the memory of each replica.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import yaml

from app.messages import Done, Generate, Message, Sampling
from app.settings import LLMSettings
from deployments.llama_cpp import LlamaCpp

ROOT = Path(__file__).parents[1]
PORT = 21434
QUESTION = "Where do visitors park?"
FACTS = [
    f"Section {number}. Visitors of building {number} park on level {number} of the garage. "
    f"The gate opens at {number}:30. "
    f"Bicycles of staff in building {number} belong in cellar {number}, beside the workshop."
    for number in range(1, 13)
]


@dataclass(frozen=True)
class Answer:
    """One timed answer."""

    first_s: float
    tokens: int


@dataclass(frozen=True)
class Row:
    """One way with so many clients."""

    way: str
    clients: int
    tokens_per_s: float
    first_p50_ms: float
    first_p99_ms: float


async def load(way: str, ask: Callable[[], Awaitable[Answer]], clients: int, rounds: int) -> Row:
    """`clients` at once, each asking `rounds` times in a row."""
    await ask()  # warm

    async def client() -> list[Answer]:
        return [await ask() for _ in range(rounds)]

    started = time.perf_counter()
    answers = [answer for group in await asyncio.gather(*(client() for _ in range(clients))) for answer in group]
    wall = time.perf_counter() - started
    first = sorted(answer.first_s * 1000 for answer in answers)
    p99 = first[min(len(first) - 1, int(len(first) * 0.99))]
    return Row(way, clients, sum(answer.tokens for answer in answers) / wall, statistics.median(first), p99)


def engine_asker(engine: LlamaCpp, tokens: int) -> Callable[[], Awaitable[Answer]]:
    """Ask the engine in this process."""
    number = 0

    async def ask() -> Answer:
        nonlocal number
        number += 1
        request = Generate(
            request_id=str(number),
            model="mindfu-demo",
            messages=(Message(role="user", content=QUESTION),),
            max_tokens=tokens,
            sampling=Sampling(temperature=1.0, seed=number),
        )
        started, first = time.perf_counter(), None
        async for item in engine.generate(request):
            first = first or time.perf_counter() - started
            if isinstance(item, Done):
                return Answer(first, item.usage.completion_tokens)
        raise AssertionError

    return ask


def http_asker(http: httpx.AsyncClient, tokens: int, *, rag: bool) -> Callable[[], Awaitable[Answer]]:
    """Ask over HTTP, streamed."""
    number = 0

    async def ask() -> Answer:
        nonlocal number
        number += 1
        body = {
            "model": "mindfu-demo",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": tokens,
            "temperature": 1.0,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
            "rag": rag,
        }
        started, first, count = time.perf_counter(), 0.0, 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if not first and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - started
                if chunk.get("usage"):
                    count = chunk["usage"]["completion_tokens"]
        return Answer(first or time.perf_counter() - started, count)

    return ask


@asynccontextmanager
async def graph() -> AsyncIterator[httpx.AsyncClient]:
    """The whole graph, as a user starts it, in a folder of its own. Prints start-up time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        config["http_options"]["port"] = PORT
        file = Path(folder) / "serve_config.yaml"
        file.write_text(yaml.safe_dump(config))
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deployments.cli", "serve", str(file),
            stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "MINDFU_HOME": str(Path(folder) / "home")},
        )  # fmt: skip
        assert process.stdout
        while b"MindFu answers" not in (line := await process.stdout.readline()):
            assert line, "the graph did not start"
        print(f"\nstart-up of the graph: {time.perf_counter() - started:.1f} s")
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{PORT}", timeout=600, limits=httpx.Limits(max_connections=64)
            ) as http:
                yield http
                _print_memory(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            await process.wait()


def _print_memory(pid: int) -> None:
    print("\n| process | resident MB | of it shared MB |\n|---|---|---|")
    for process in psutil.Process(pid).children(recursive=True):
        name = " ".join(process.cmdline())[:60] or process.name()
        memory = process.memory_info()
        if memory.rss > 30e6:
            print(f"| {name} | {memory.rss / 1e6:.0f} | {memory.shared / 1e6:.0f} |")


def _print_stages(page: str) -> None:
    sums: dict[str, dict[str, float]] = {}
    for line in page.splitlines():
        if line.startswith(("mindfu_stage_seconds_sum", "mindfu_stage_seconds_count")):
            name, value = line.split("} ")
            kind, stage = name.split('{stage="')
            sums.setdefault(stage.strip('"'), {})[kind.rsplit("_", 1)[1]] = float(value)
    print("\n| stage | mean ms | times |\n|---|---|---|")
    for stage, values in sums.items():
        print(f"| {stage} | {1000 * values['sum'] / values['count']:.2f} | {values['count']:.0f} |")


async def main() -> None:
    """Run the three ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    rows = []
    engine = LlamaCpp(LLMSettings(), Path(tempfile.mkdtemp()))
    ask = engine_asker(engine, options.tokens)
    rows += [await load("a engine", ask, clients, options.rounds) for clients in options.clients]
    engine.close()
    async with graph() as http:
        ask = http_asker(http, options.tokens, rag=False)
        rows += [await load("b graph", ask, clients, options.rounds) for clients in options.clients]
        _print_stages((await http.get("/metrics")).text)
        for fact in FACTS:
            (await http.post("/v1/documents", json={"content": fact})).raise_for_status()
        ask = http_asker(http, options.tokens, rag=True)
        rows += [await load("c graph + RAG", ask, clients, options.rounds) for clients in options.clients]
        _print_stages((await http.get("/metrics")).text)
    alone = {row.clients: row for row in rows if row.way == "a engine"}
    print("\n| way | clients | tokens/s | ratio to (a) | first token p50 ms | p99 ms |\n|---|---|---|---|---|---|")
    for row in rows:
        ratio = row.tokens_per_s / alone[row.clients].tokens_per_s
        print(
            f"| {row.way} | {row.clients} | {row.tokens_per_s:.0f} | {ratio:.2f} "
            f"| {row.first_p50_ms:.1f} | {row.first_p99_ms:.1f} |"
        )


if __name__ == "__main__":
    asyncio.run(main())
