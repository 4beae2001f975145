"""How many requests a machine, and a cluster, carries: a simulation, held against what was measured.

    python -m benchmarks.capacity                       # measure, simulate, and keep what was measured in capacity.json
    python -m benchmarks.capacity --kept                # simulate what was kept

1. One client asks the graph, with short and with long answers, RAG off and on: the processor time of each process is
   what a request, and a piece of its answer, cost there. The engine alone, asked by 1 and by 8, gives the growth of a
   step with its batch.
2. Crowds of 1, 4, 16 and 32 clients are measured.
3. benchmarks/load_model.py simulates them. It knows what one client costs, and the processor time of the largest crowd;
   the speed of no crowd, and nothing of those between.
4. The same simulation with machines of their own for gateways and engines: what saturates first.
"""

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import psutil

from app.settings import LLMSettings
from benchmarks.load_model import (
    BEFORE,
    CLIENT,
    DISK,
    ENGINE,
    OTHER,
    STATIONS,
    Alone,
    Crowd,
    Measured,
    Plan,
    Seconds,
    World,
    plan_of,
)
from benchmarks.load_model import Way as Found
from benchmarks.proxy import PORT, Way, everything, fdatasync, line, mindfu
from benchmarks.serving import FACTS, QUESTION, engine_asker, load
from deployments.llama_cpp import LlamaCpp

KEPT = Path(__file__).with_suffix(".json")
CROWDS = (1, 4, 16, 32)
WITHIN = 0.15
IDLE_S = 4.0


async def ask(http: aiohttp.ClientSession, way: Way, tokens: int, *, rag: bool) -> tuple[float, int]:
    """(seconds to the first token, pieces) of one streamed answer of so many tokens."""
    body = {
        "model": "mindfu-demo",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "rag": rag,
    }
    started, first, pieces = time.perf_counter(), 0.0, 0
    url, headers = f"http://127.0.0.1:{way.port}/v1/chat/completions", {"authorization": f"Bearer {way.key}"}
    async with http.post(url, json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        async for part in answer.content:
            if b'"content"' in part:
                first = first or time.perf_counter() - started
                pieces += 1
    return first, pieces


def spent(way: Way) -> Counter[str]:
    """Processor seconds so far, by station. `other` is all that this machine did besides."""
    found: Counter[str] = Counter()
    for process in everything(way):
        with suppress(psutil.Error):
            times, title = process.cpu_times(), line(process)
            found[next((name for name in (*BEFORE, ENGINE, DISK) if name in title), OTHER)] += times.user + times.system
    found[CLIENT] = time.process_time()
    whole = psutil.cpu_times()
    found[OTHER] = sum(whole) - whole.idle - whole.iowait - found.total() + found[OTHER]
    return found


def over(way: Way, requests: int, before: Counter[str], began: float, idle: Seconds) -> Seconds:
    """Processor seconds of one of so many requests, less what the machine does anyway."""
    wall, after = time.perf_counter() - began, spent(way)
    return {name: max(0.0, after[name] - before[name] - idle[name] * wall) / requests for name in STATIONS}


async def alone(http: aiohttp.ClientSession, way: Way, tokens: int, idle: Seconds, *, rag: bool) -> Alone:
    """One client, answers of so many tokens."""
    count = 40
    await ask(http, way, tokens, rag=rag)
    before, began = spent(way), time.perf_counter()
    pieces = [(await ask(http, way, tokens, rag=rag))[1] for _ in range(count)]
    seconds = (time.perf_counter() - began) / count
    cpu = over(way, count, before, began, idle)
    return Alone(tokens=tokens, pieces=statistics.mean(pieces), seconds=seconds, cpu=cpu)


async def crowd(
    http: aiohttp.ClientSession, way: Way, clients: int, seconds: float, tokens: int, idle: Seconds, *, rag: bool
) -> Crowd:
    """So many clients for so long."""
    end = time.perf_counter() + seconds

    async def client() -> list[float]:
        firsts = []
        while time.perf_counter() < end:
            firsts.append((await ask(http, way, tokens, rag=rag))[0])
        return firsts

    before, began = spent(way), time.perf_counter()
    firsts = [first for many in await asyncio.gather(*(client() for _ in range(clients))) for first in many]
    rate = len(firsts) / (time.perf_counter() - began)
    cpu = over(way, len(firsts), before, began, idle)
    return Crowd(clients=clients, requests_per_s=rate, first_s=statistics.median(firsts), cpu=cpu)


async def measured(tokens: int, seconds: float) -> Measured:
    """All of it, of the whole graph."""
    grown, ways = await growth(tokens), list[Found]()
    with tempfile.TemporaryDirectory() as scratch:
        commit_s = fdatasync(Path(scratch))
        async with (
            mindfu("demo", Path(scratch), "MindFu") as way,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as http,
        ):
            url, headers = f"http://127.0.0.1:{PORT + 3}/v1/documents", {"authorization": f"Bearer {way.key}"}
            for fact in FACTS:
                async with http.post(url, json={"content": fact}, headers=headers) as answer:
                    assert answer.ok, await answer.text()
            for rag in (False, True):
                await ask(http, way, tokens, rag=rag)
                before = spent(way)
                await asyncio.sleep(IDLE_S)
                after = spent(way)
                idle = {name: (after[name] - before[name]) / IDLE_S for name in STATIONS}
                short, long = [await alone(http, way, length, idle, rag=rag) for length in (8, 8 + 2 * tokens)]
                crowds = [await crowd(http, way, many, seconds, tokens, idle, rag=rag) for many in CROWDS]
                ways.append(Found(rag=rag, idle=idle, short=short, long=long, crowds=tuple(crowds)))
    return Measured(
        machine=platform.processor() or platform.machine(),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        cores=os.cpu_count() or 1,
        tokens=tokens,
        growth=grown,
        commit_s=commit_s,
        ways=tuple(ways),
    )


async def growth(tokens: int) -> float:
    """How much longer a step over 8 answers takes than one over 1, of the engine alone."""
    engine = LlamaCpp(LLMSettings(threads=1), Path(tempfile.mkdtemp()))
    try:
        asker = engine_asker(engine, tokens)
        one, eight = [await load("engine", asker, clients, 6) for clients in (1, 8)]
    finally:
        engine.close()
    return 8 * one.tokens_per_s / eight.tokens_per_s


def costs(plan: Plan) -> None:
    """Milliseconds of a request, and of a piece, by process; and what of it is left in a crowd."""
    print("\n| process | a request, ms | a piece, ms | in a crowd |\n|---|---|---|---|")
    for name, cost in plan.costs.items():
        if name == ENGINE:
            told = [f"{1000 * one:.2f}" for one in (plan.engine.prefill, plan.engine.step + plan.engine.row)]
            print(f"| {name} | {told[0]} of a prompt | {told[1]} of a step | × {plan.crowded[name]:.2f} |")
        elif cost.request + cost.piece > 0.00005:
            print(f"| {name} | {1000 * cost.request:.2f} | {1000 * cost.piece:.2f} | × {plan.crowded[name]:.2f} |")


def scaled(plan: Plan) -> None:
    """What saturates first where gateways and engines have machines of their own."""
    columns = ("gateways", "engines", "clients", "requests/s", "first token ms", "gateway cores", "engine cores")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for gateways, engines in ((1, 1), (1, 2), (1, 4), (2, 4), (2, 8)):
        clients = 12 * engines
        world = World(replace(plan, gateways=gateways, engines=engines, apart=True), clients)
        point = world.run(6.0)
        busy = {kind: sum(one.busy for one in machines) / 6.0 for kind, machines in world.machines.items()}
        print(
            f"| {gateways} | {engines} | {clients} | {point.requests_per_s:.1f} | {1000 * point.first_s:.0f} "
            f"| {busy['gateway']:.2f} | {busy['engine']:.2f} |"
        )


def compared(found: Measured, *, rag: bool) -> None:
    """Each crowd beside its simulation."""
    plan = plan_of(found, rag=rag)
    costs(plan)
    way = next(way for way in found.ways if way.rag is rag)
    print(f"\nRAG {'on' if rag else 'off'}")
    print("\n| clients | requests/s | simulated | ratio | first token ms | simulated |\n" + "|---" * 6 + "|")
    for seen in way.crowds:
        told = World(plan, seen.clients).run(20.0)
        ratio = told.requests_per_s / seen.requests_per_s
        print(
            f"| {seen.clients} | {seen.requests_per_s:.2f} | {told.requests_per_s:.2f} "
            f"| {ratio:.2f}{'' if abs(ratio - 1) <= WITHIN else ' (!)'} "
            f"| {1000 * seen.first_s:.0f} | {1000 * told.first_s:.0f} |"
        )
    scaled(plan)


def main() -> None:
    """Measure, simulate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=8, help="of each crowd")
    parser.add_argument("--kept", action="store_true", help=f"take {KEPT.name}, and measure nothing")
    options = parser.parse_args()
    if options.kept:
        found = Measured.model_validate_json(KEPT.read_text(encoding="utf-8"))
    else:
        found = asyncio.run(measured(options.tokens, options.seconds))
        KEPT.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print(f"{found.machine}, {found.cores} cores, {found.date}; answers of {found.tokens} tokens")
    print(f"a step over 8 answers takes {found.growth:.2f} times one over 1; a commit {1000 * found.commit_s:.1f} ms")
    for rag in (False, True):
        compared(found, rag=rag)


if __name__ == "__main__":
    main()
