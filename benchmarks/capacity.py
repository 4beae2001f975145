"""How many requests a machine, and a cluster, carries: a simulation, held against what was measured in the same run.

    python -m benchmarks.capacity [--tokens 48] [--seconds 20]

1. One client asks the graph, with short and with long answers, RAG off and on. The processor time that each process
   spent for it is what a request, and a piece of its answer, cost there. The engine alone, asked by 1 and by 8, gives
   the time of a step by its batch.
2. A discrete-event simulation (SimPy) of these costs: every process is one queue, all share the cores of this machine,
   the engine answers `slots` at once, and pieces are sent every `flush_s`.
3. Crowds of 4, 16 and 32 clients are measured and simulated. The simulation saw none of them.
4. The same simulation with machines of their own for gateways and engines: what saturates first.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import simpy

from app.settings import LLMSettings
from benchmarks.proxy import PORT, Way, everything, line, mindfu
from benchmarks.serving import FACTS, QUESTION, engine_asker, load
from deployments.llama_cpp import LlamaCpp

QUANTUM_S = 0.0005
FLUSH_S = 0.02
STATIONS = ("ProxyActor", "Gateway", "LlamaCpp", "Retriever", "Embedder", "VectorStore", "Librarian", "postgres")
CLIENT, OTHER = "client", "other"


@dataclass(frozen=True)
class Cost:
    """Processor seconds of one process for a request, and for each piece of its answer."""

    request: float = 0.0
    piece: float = 0.0


@dataclass(frozen=True)
class Engine:
    """Of one replica, seconds: a step of `b` answers takes `step + b * row`; a prompt takes `prefill`."""

    prefill: float
    step: float
    row: float
    slots: int = 8


@dataclass(frozen=True)
class Plan:
    """What is simulated. cores: shared by all processes of one machine; gateways, engines: processes of each kind."""

    costs: dict[str, Cost]
    engine: Engine
    tokens: int
    cores: int
    gateways: int = 1
    engines: int = 1
    apart: bool = False  # clients, gateways and engines on machines of their own, of `cores` each


@dataclass(frozen=True)
class Point:
    """A crowd's throughput, and its median time to the first token."""

    requests_per_s: float
    first_s: float


class Machine:
    """Cores, given to whoever waits in short turns, as an operating system does."""

    def __init__(self, world: simpy.Environment, cores: int) -> None:
        self.world, self.cores, self.busy = world, simpy.Resource(world, cores), 0.0

    def work(self, thread: simpy.Resource, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Let a process, which does one thing at a time, spend so much processor time."""
        with thread.request() as turn:
            yield turn
            while seconds > 0:
                with self.cores.request() as core:
                    yield core
                    part = min(seconds, QUANTUM_S)
                    yield self.world.timeout(part)
                    self.busy += part
                seconds -= part


class World:
    """One simulation of a plan."""

    def __init__(self, plan: Plan, clients: int) -> None:
        self.plan, self.clients = plan, clients
        self.world = simpy.Environment()
        first = Machine(self.world, plan.cores)
        gateways = [Machine(self.world, plan.cores) for _ in range(plan.gateways)] if plan.apart else [first]
        engines = [Machine(self.world, plan.cores) for _ in range(plan.engines)] if plan.apart else [first]
        self.machines = {"client": [Machine(self.world, clients) if plan.apart else first]}
        self.machines |= {"gateway": gateways, "engine": engines}
        self.threads: dict[tuple[str, int], simpy.Resource] = {}
        self.slots = [simpy.Resource(self.world, plan.engine.slots) for _ in range(plan.engines)]
        self.waiting: list[list[Answer]] = [[] for _ in range(plan.engines)]
        self.woken = [self.world.event() for _ in range(plan.engines)]
        self.firsts: list[float] = []
        self.ended: list[float] = []

    def spend(self, name: str, which: int, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Processor time of the process `name`, the one numbered so."""
        kind = "client" if name == CLIENT else "engine" if name == "LlamaCpp" else "gateway"
        machines = self.machines[kind]
        number = which % (self.clients if name == CLIENT and self.plan.apart else len(machines))
        thread = self.threads.setdefault((name, number), simpy.Resource(self.world, 1))
        yield from machines[number % len(machines)].work(thread, seconds)

    def client(self, number: int) -> Generator[simpy.Event, Any, None]:
        """Asks again as soon as it is answered."""
        plan, which, round_ = self.plan, number, number
        while True:
            began = self.world.now
            round_ += 1
            gateway, engine = which % plan.gateways, round_ % plan.engines
            before = [name for name in plan.costs if name not in {"postgres", "Librarian", OTHER, "LlamaCpp"}]
            for name in before:
                yield from self.spend(name, gateway, plan.costs[name].request)
            with self.slots[engine].request() as slot:
                yield slot
                yield from self.spend("LlamaCpp", engine, plan.costs["LlamaCpp"].request)
                answer = Answer(plan.tokens, self.world.event(), simpy.Store(self.world))
                self.waiting[engine].append(answer)
                if not self.woken[engine].triggered:
                    self.woken[engine].succeed()
                last, first = False, True
                while not last:
                    last = yield answer.pieces.get()
                    for name in plan.costs:
                        yield from self.spend(name, gateway, plan.costs[name].piece)
                    if first:
                        self.firsts.append(self.world.now - began)
                    first = False
            self.ended.append(self.world.now)
            for name in ("postgres", "Librarian", OTHER):
                self.world.process(self.spend(name, gateway, plan.costs.get(name, Cost()).request))

    def run_engine(self, number: int) -> Generator[simpy.Event, Any, None]:
        """Steps over all answers that run; prompts are loaded when they come."""
        plan, running = self.plan, list[Answer]()
        while True:
            if not running and not self.waiting[number]:
                self.woken[number] = self.world.event()
                yield self.woken[number]
            for answer in self.waiting[number]:
                yield from self.spend("LlamaCpp", number, plan.engine.prefill)
                running.append(answer)
            self.waiting[number].clear()
            yield from self.spend("LlamaCpp", number, plan.engine.step + len(running) * plan.engine.row)
            for answer in list(running):
                answer.left -= 1
                over = answer.left == 0
                if over or self.world.now - answer.sent >= FLUSH_S:
                    answer.sent = self.world.now
                    answer.pieces.put(over)
                if over:
                    running.remove(answer)

    def run(self, seconds: float) -> Point:
        """Simulate so long, the first fifth not counted."""
        for number in range(self.plan.engines):
            self.world.process(self.run_engine(number))
        for number in range(self.clients):
            self.world.process(self.client(number))
        self.world.run(seconds / 5)
        skipped, begun = len(self.ended), len(self.firsts)
        self.world.run(seconds)
        counted = len(self.ended) - skipped
        return Point(counted / (seconds * 4 / 5), statistics.median(self.firsts[begun:]))


@dataclass
class Answer:
    """One that the simulated engine writes. left: tokens; sent: when its last piece went out."""

    left: int
    done: simpy.Event
    pieces: simpy.Store
    sent: float = -1.0


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


def spent(way: Way) -> dict[str, float]:
    """Processor seconds so far, by process."""
    found = dict.fromkeys((*STATIONS, OTHER), 0.0)
    for process in everything(way):
        with suppress(psutil.Error):
            times, title = process.cpu_times(), line(process)
            found[next((name for name in STATIONS if name in title), OTHER)] += times.user + times.system
    own = time.process_time()
    return found | {CLIENT: own}


async def alone(
    http: aiohttp.ClientSession, way: Way, tokens: int, idle: dict[str, float], *, rag: bool, count: int = 60
) -> tuple[dict[str, float], float]:
    """(processor seconds of each process for one answer, its pieces), of one client."""
    await ask(http, way, tokens, rag=rag)
    before, began = spent(way), time.perf_counter()
    pieces = [(await ask(http, way, tokens, rag=rag))[1] for _ in range(count)]
    wall, after = time.perf_counter() - began, spent(way)
    each = {name: max(0.0, after[name] - before[name] - idle.get(name, 0.0) * wall) / count for name in after}
    return each, statistics.mean(pieces)


async def plan_of(http: aiohttp.ClientSession, way: Way, tokens: int, growth: float, *, rag: bool) -> Plan:
    """What one client shows. growth: of a step's time from a batch of 1 to one of 8."""
    before, began = spent(way), time.perf_counter()
    await asyncio.sleep(5)
    idle = {name: (seconds - before[name]) / (time.perf_counter() - began) for name, seconds in spent(way).items()}
    lengths = (8, 8 + 2 * tokens)
    (short, few), (long, many) = [await alone(http, way, length, idle, rag=rag) for length in lengths]
    costs = {}
    for name in (CLIENT, *STATIONS, OTHER):
        piece = max(0.0, (long[name] - short[name]) / (many - few))
        costs[name] = Cost(max(0.0, short[name] - few * piece), piece)
    token = (long["LlamaCpp"] - short["LlamaCpp"]) / (lengths[1] - lengths[0])
    row = token * (growth - 1) / 7
    engine = Engine(max(0.0, short["LlamaCpp"] - lengths[0] * token), token - row, row)
    return Plan(costs | {"LlamaCpp": Cost()}, engine, tokens, os.cpu_count() or 1)


async def crowd(
    http: aiohttp.ClientSession, way: Way, clients: int, seconds: float, tokens: int, *, rag: bool
) -> Point:
    """Measure so many clients for so long."""
    over = time.perf_counter() + seconds

    async def client() -> list[float]:
        firsts = []
        while time.perf_counter() < over:
            firsts.append((await ask(http, way, tokens, rag=rag))[0])
        return firsts

    began = time.perf_counter()
    firsts = [first for many in await asyncio.gather(*(client() for _ in range(clients))) for first in many]
    return Point(len(firsts) / (time.perf_counter() - began), statistics.median(firsts))


async def growth(tokens: int) -> float:
    """How much longer a step over 8 answers takes than one over 1, of the engine alone."""
    engine = LlamaCpp(LLMSettings(threads=1), Path(tempfile.mkdtemp()))
    try:
        asker = engine_asker(engine, tokens)
        one, eight = [await load("engine", asker, clients, 6) for clients in (1, 8)]
    finally:
        engine.close()
    return 8 * one.tokens_per_s / eight.tokens_per_s


def scaled(plan: Plan) -> None:
    """What saturates first where gateways and engines have machines of their own."""
    columns = ("gateways", "engines", "clients", "requests/s", "first token ms", "gateway cores", "engine cores")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for gateways, engines in ((1, 1), (1, 2), (1, 4), (2, 4), (2, 8)):
        clients = 12 * engines
        world = World(replace(plan, gateways=gateways, engines=engines, apart=True), clients)
        point = world.run(8.0)
        busy = {kind: sum(one.busy for one in machines) / 8.0 for kind, machines in world.machines.items()}
        print(
            f"| {gateways} | {engines} | {clients} | {point.requests_per_s:.1f} | {1000 * point.first_s:.0f} "
            f"| {busy['gateway']:.2f} | {busy['engine']:.2f} |"
        )


async def main() -> None:
    """Measure, simulate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=12)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    grown = await growth(options.tokens)
    print(f"a step over 8 answers takes {grown:.2f} times one over 1", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            mindfu("demo", Path(scratch), "MindFu") as way,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as http,
        ):
            url, headers = f"http://127.0.0.1:{PORT + 3}/v1/documents", {"authorization": f"Bearer {way.key}"}
            for fact in FACTS:
                async with http.post(url, json={"content": fact}, headers=headers) as answer:
                    assert answer.ok, await answer.text()
            for rag in (False, True):
                plan = await plan_of(http, way, options.tokens, grown, rag=rag)
                print(f"\nRAG {'on' if rag else 'off'}: {json.dumps(_readable(plan))}", flush=True)
                for clients in (1, 4, 16, 32):
                    seen = await crowd(http, way, clients, options.seconds, options.tokens, rag=rag)
                    told = World(plan, clients).run(options.seconds)
                    rows.append((rag, clients, seen, told))
                if not rag:
                    bare = plan
    print("\n| RAG | clients | requests/s | simulated | ratio | first token ms | simulated |\n|" + "---|" * 7)
    for rag, clients, seen, told in rows:
        print(
            f"| {'on' if rag else 'off'} | {clients} | {seen.requests_per_s:.2f} | {told.requests_per_s:.2f} "
            f"| {told.requests_per_s / seen.requests_per_s:.2f} "
            f"| {1000 * seen.first_s:.0f} | {1000 * told.first_s:.0f} |"
        )
    scaled(bare)
    scaled(plan)


def _readable(plan: Plan) -> dict[str, Any]:
    """Milliseconds: of a request and of a piece, by process; of the engine's prefill, step and row."""
    found = {name: [round(1000 * cost.request, 2), round(1000 * cost.piece, 2)] for name, cost in plan.costs.items()}
    engine = plan.engine
    return found | {"engine": [round(1000 * one, 2) for one in (engine.prefill, engine.step, engine.row)]}


if __name__ == "__main__":
    asyncio.run(main())
