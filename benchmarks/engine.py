"""Our engine against llama-server and llama-cpp-python's own server: one GGUF, the same threads, slots and prompts.

    python -m benchmarks.engine [--peer PATH/TO/llama-server] [--runs 5] [--only throughput schema …]

All run at once and are asked in turns over HTTP, ours through `benchmarks.thin_server`; each number is the median of
the runs, and ratios are ours / llama-server. Weights are random: speed does not depend on them. The peer is found by
--peer or LLAMA_SERVER, or built once under MINDFU_HOME/benchmarks. Answers are sampled as llama-server does by default.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers import Load, Server, example, llama_server, ours, release, theirs
from tests.gguf_factory import CHATML, SMALL, Shape, chain_model, random_model

PORT = 21500
SLOTS, WINDOW = 16, 2048
WORDS = (
    "the",
    "other",
    "thing",
    "in",
    "a",
    "low",
    "hall",
    "ought",
    "to",
    "be",
    "an",
    "answer",
    "on",
    "matter",
    "tower",
)
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "count": {"type": "integer", "minimum": 0, "maximum": 99999},
        "kind": {"enum": ["letter", "invoice", "report"]},
        "urgent": {"type": "boolean"},
    },
    "required": ["title", "count", "kind", "urgent"],
    "additionalProperties": False,
}
QUOTED = "".join(map(chr, range(33, 127)))  # each once: the quoting model goes from each to the next
QUOTING = Shape(embedding=1024, layers=12, heads=16, kv_heads=8, feed_forward=3072)  # SMALL, with few tokens


@dataclass
class Heard:
    """One streamed answer, seen by its client. Seconds since the question."""

    at: list[float] = field(default_factory=list)  # of every chunk with text
    tokens: int = 0
    prompt: int = 0
    wall_s: float = 0.0

    @property
    def first_s(self) -> float:
        """To the first text; of an answer without any, to its end."""
        return self.at[0] if self.at else self.wall_s


Numbers = dict[str, float]
Scenario = Callable[[Server, int], Awaitable[Numbers]]  # the second is the run's number: every run asks anew


async def ask(server: Server, body: dict[str, Any]) -> Heard:
    """Ask by a bare socket, so that the client's own work is small and the same for all."""
    data = json.dumps({"model": "any", "stream": True, "stream_options": {"include_usage": True}} | body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**24)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    heard, began = Heard(), time.perf_counter()
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{server.name}: {status!r} {(await reader.read())[:600]!r}")
    async for line in reader:
        if line.startswith(b"data: {"):
            _read(heard, line, time.perf_counter() - began)
    heard.wall_s = time.perf_counter() - began
    heard.tokens = heard.tokens or len(heard.at)  # llama-cpp-python tells no usage, and sends each token by itself
    writer.close()
    return heard


def _read(heard: Heard, line: bytes, now: float) -> None:
    if b'"content":null' in line or b'"content": ""' in line or b'"content":""' in line:
        return
    if b'"content"' in line:
        heard.at.append(now)
    if b'"usage"' in line:
        usage = json.loads(line[6:]).get("usage") or {}
        heard.tokens, heard.prompt = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)


def text(tokens: int, seed: int) -> str:
    """Words of some so many tokens, different from the first one on for every seed."""
    words, length, at = [f"{seed:x}"], 0, seed
    while length < tokens:
        at = (at * 1103515245 + 12345) % 2**31
        words.append(WORDS[(at >> 8) % len(WORDS)])
        length += len(words[-1])  # the vocabulary is of bytes and a few merges
    return " ".join(words)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def throughput(clients: int, *, lockstep: bool = False, rounds: int = 3) -> Scenario:
    """`clients` at once, each asking `rounds` short questions in a row, for answers of 32 to 96 tokens.

    lockstep: all answers have 64 tokens, so that all begin and end together, which happens in benchmarks only.
    """

    async def run(server: Server, number: int) -> Numbers:
        async def client(which: int) -> list[Heard]:
            heard = []
            for turn in range(rounds):
                seed = 1 + (((clients * 100 + number) * 100 + which) * 10 + turn) * 2 + lockstep
                tokens = 64 if lockstep else 32 + seed * 2654435761 % 2**32 % 65
                body = {"messages": [user(text(48, seed))], "max_tokens": tokens, "seed": seed}
                heard.append(await ask(server, SAMPLING | body))
            return heard

        began = time.perf_counter()
        heard = [one for many in await asyncio.gather(*map(client, range(clients))) for one in many]
        wall_s = time.perf_counter() - began
        first = sorted(one.first_s * 1000 for one in heard)
        return {
            "tokens/s": sum(one.tokens for one in heard) / wall_s,
            "first token p50 ms": statistics.median(first),
            "first token p99 ms": first[-1] if len(first) < 100 else first[int(len(first) * 0.99)],
        }

    return run


async def conversation(server: Server, number: int) -> Numbers:
    """Twenty turns behind a system prompt of 1,000 tokens; the client sends the whole history each time."""
    messages = [{"role": "system", "content": text(900, 7_000_000 + number)}]
    began, heard = time.perf_counter(), []
    for turn in range(20):
        messages.append(user(text(10, 8_000_000 + number * 100 + turn)))
        heard.append(await ask(server, SAMPLING | {"messages": messages, "max_tokens": 16, "seed": turn}))
        messages.append({"role": "assistant", "content": text(10, 9_000_000 + number * 100 + turn)})
    later = [one.first_s * 1000 for one in heard[1:]]
    return {
        "20 turns s": time.perf_counter() - began,
        "first turn, first token ms": heard[0].first_s * 1000,
        "later turns, first token p50 ms": statistics.median(later),
    }


def schema(clients: int) -> Scenario:
    """JSON that satisfies a schema, from a model that would say anything else."""
    wanted = {"type": "json_schema", "json_schema": {"name": "letter", "schema": SCHEMA, "strict": True}}

    async def run(server: Server, number: int) -> Numbers:
        async def client(which: int) -> Heard:
            seed = 4_000_000 + (clients * 100 + number) * 100 + which
            body = {"messages": [user(text(48, seed))], "max_tokens": 160, "seed": seed, "response_format": wanted}
            return await ask(server, SAMPLING | {"ignore_eos": False} | body)

        began = time.perf_counter()
        heard = await asyncio.gather(*map(client, range(clients)))
        return {"tokens/s": sum(one.tokens for one in heard) / (time.perf_counter() - began)}

    return run


async def intrusion(server: Server, number: int) -> Numbers:
    """A prompt of 1,500 tokens arrives while four answers run. What those feel of it, and how soon it is answered."""

    def body(seed: int, content: str, tokens: int) -> dict[str, Any]:
        return SAMPLING | {"messages": [user(content)], "max_tokens": tokens, "seed": seed}

    seeds = [5_000_000 + number * 10 + which for which in range(4)]
    running = [asyncio.create_task(ask(server, body(seed, text(48, seed), 240))) for seed in seeds]
    await asyncio.sleep(1.0)
    long = await ask(server, body(number, text(1400, 6_000_000 + number), 4))
    heard = await asyncio.gather(*running)
    gaps = sorted(1000 * (after - before) for one in heard for before, after in zip(one.at, one.at[1:], strict=False))
    return {
        "inter-chunk p99 ms": gaps[int(len(gaps) * 0.99)],
        "inter-chunk worst ms": gaps[-1],
        "long prompt, first token ms": long.first_s * 1000,
        "all answers s": max(one.wall_s for one in heard),
    }


async def quoting(server: Server, number: int) -> Numbers:
    """An answer that repeats its prompt's words, as answers from retrieved passages do."""
    content = f"{number} {QUOTED} {text(200, number)}"
    heard = await ask(server, {"messages": [user(content)], "max_tokens": 2 * len(QUOTED), "temperature": 0})
    return {"tokens/s": heard.tokens / heard.wall_s}


SCENARIOS: dict[str, Scenario] = {
    **{f"throughput, {clients} client(s)": throughput(clients) for clients in (1, 4, 8, 16)},
    "lockstep, 16 client(s)": throughput(16, lockstep=True),
    "conversation": conversation,
    **{f"schema, {clients} client(s)": schema(clients) for clients in (1, 4)},
    "intrusion": intrusion,
}


async def measure(servers: Sequence[Server], scenario: Scenario, runs: int) -> dict[str, dict[str, float]]:
    """Number → server → median. Servers take turns, and who begins does too."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in range(-1, runs):  # the first one warms up
        for server in [*servers[run % len(servers) :], *servers[: run % len(servers)]]:
            for name, value in (await scenario(server, run + 1)).items():
                if run >= 0:
                    found[name][server.name].append(value)
    return {name: {server: statistics.median(values) for server, values in by.items()} for name, by in found.items()}


def show(scenario: str, found: dict[str, dict[str, float]], servers: Sequence[Server]) -> None:
    """Rows of the table. The last column is the first server / the second one."""
    for number, values in found.items():
        cells = [f"{values[server.name]:.1f}" if server.name in values else "" for server in servers]
        ratio = values[servers[0].name] / values[servers[1].name]
        print(f"| {scenario} | {number} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


def header(servers: Sequence[Server]) -> None:
    names = [server.name for server in servers]
    print(
        f"\n| scenario | number | {' | '.join(names)} | {names[0]} / {names[1]} |\n|---|---|{'---|' * (len(names) + 1)}"
    )


async def against_peers(model: Path, options: argparse.Namespace) -> None:
    """The table of all scenarios."""
    load = Load(model, SLOTS, WINDOW, options.threads)
    program = llama_server(options.peer)
    print(f"peer: {release(program)}; {load.slots} slots of {load.window} tokens, {load.threads} thread(s)")
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(ours(load, PORT, **json.loads(options.settings))),
            await stack.enter_async_context(theirs(program, load, PORT + 1)),
        ]
        third = [] if options.no_example else [await stack.enter_async_context(example(load, PORT + 2))]
        header([*servers, *third])
        for name, scenario in SCENARIOS.items():
            if options.only and not any(name.startswith(one) for one in options.only):
                continue
            asked = [*servers, *third] if name in {"throughput, 1 client(s)", "throughput, 4 client(s)"} else servers
            found = await measure(asked, scenario, options.runs)
            show(name, found, [*servers, *third])
        memory = {server.name: psutil.Process(server.pid).memory_info().rss / 1e6 for server in [*servers, *third]}
        show("at the end", {"resident MB": memory}, [*servers, *third])


async def with_and_without_lookup(model: Path, options: argparse.Namespace) -> None:
    """Ours against ours: drafts copied from the prompt, and none."""
    load = Load(model, SLOTS, WINDOW, options.threads)
    async with ours(load, PORT + 3) as with_it, ours(load, PORT + 4, "ours without lookup", speculation=0) as without:
        servers = [with_it, without]
        header(servers)
        show("quoting, 1 client(s)", await measure(servers, quoting, options.runs), servers)


def main() -> None:
    """Make the models, run the servers, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a llama-server program")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", help="scenarios whose names begin so")
    parser.add_argument("--no-example", action="store_true", help="leave llama-cpp-python's own server out")
    parser.add_argument("--settings", default="{}", help="further LLMSettings of ours, JSON")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        if options.only != ["quoting"]:
            model = random_model(Path(folder) / "random.gguf", SMALL, template=CHATML)
            print(f"model: random weights, {model.stat().st_size / 1e6:.0f} MB, Q8_0")
            asyncio.run(against_peers(model, options))
        if not options.only or "quoting" in options.only:
            chain = chain_model(Path(folder) / "chain.gguf", list(QUOTED.encode()), QUOTING)
            asyncio.run(with_and_without_lookup(chain, options))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
