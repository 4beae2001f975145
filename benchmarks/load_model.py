"""A discrete-event simulation (SimPy) of the graph under load, from what was measured of a few requests.

    plan = plan_of(measured, rag=False)
    World(plan, clients=16).run(20.0)        # requests/s, and the median time to the first token
    World(replace(plan, engines=4, apart=True), 48).run(20.0)    # on machines of their own

Every process is one thread that does one thing at a time, and all of a machine share its cores in short turns. A
request passes HAProxy, the gateway and, with RAG, the parts that search; the engine steps over all answers that have a
slot; what an answer has said waits `FLUSH_S`, then the pieces that wait together are one. At the end the turn is
committed, which takes the disk's time. Beside all that the machine does what it does when nobody asks, and remembers
what was said, which takes a share of the time, however many ask (docs/memory.md): where nobody searches, the parts that
search do nothing else.

What a request costs alone and in a crowd differs: a busy process is woken once for several events. So each cost is
that of one client where one request is in the graph, and nears that of the largest crowd that was measured (its
processor time, not its throughput) the more are: in between as 1/n. A prompt costs the same in any company.
"""

import statistics
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import simpy
from pydantic import BaseModel, ConfigDict

QUANTUM_S = 0.0005
FLUSH_S = 0.02
SLOTS = 8
CLIENT, OTHER, ENGINE, DISK = "client", "other", "LlamaCpp", "postgres"
SEARCH = ("Retriever", "Embedder", "VectorStore")
BEFORE = ("haproxy", "Gateway", *SEARCH)  # in the order in which a request passes them
STATIONS = (CLIENT, *BEFORE, ENGINE, DISK, OTHER)
Seconds = dict[str, float]  # of processor time, by station


class Strict(BaseModel):
    """Frozen, and a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Alone(Strict):
    """Answers of one length, asked for by one client. Means of one answer."""

    tokens: int
    pieces: float
    seconds: float
    cpu: Seconds


class Crowd(Strict):
    """So many clients, each asking again when it has its answer. cpu: of one answer."""

    clients: int
    requests_per_s: float
    first_s: float  # median
    cpu: Seconds


class Way(Strict):
    """What was measured with RAG on, or off. idle: cores that are busy when nobody asks."""

    rag: bool
    idle: Seconds
    short: Alone
    long: Alone
    crowds: tuple[Crowd, ...]  # the largest last


class Measured(Strict):
    """One run of `benchmarks.capacity`. growth: of a step's time from 1 answer to 8; commit_s: of one fdatasync."""

    machine: str
    date: str
    cores: int
    tokens: int  # of an answer of a crowd
    growth: float
    commit_s: float
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Cost:
    """Processor seconds of one process for a request, and for each piece of its answer."""

    request: float = 0.0
    piece: float = 0.0


@dataclass(frozen=True)
class Engine:
    """Of one replica, seconds: a step of `b` answers takes `step + b * row`; a prompt and its first token `prefill`."""

    prefill: float
    step: float
    row: float
    slots: int = SLOTS


@dataclass(frozen=True)
class Plan:
    """What is simulated. crowded: the cost in a crowd as a part of the cost alone; background: cores.

    cores: shared by all processes of one machine. gateways, engines: processes of each kind; apart: clients, gateways
    and engines on machines of their own, of `cores` each, the gateways with the parts that search.
    """

    costs: dict[str, Cost]
    engine: Engine
    tokens: int
    cores: int
    commit_s: float
    background: float
    crowded: Seconds
    gateways: int = 1
    engines: int = 1
    apart: bool = False


@dataclass(frozen=True)
class Point:
    """A crowd's throughput, its median time to the first token, and the processor time of one answer by station."""

    requests_per_s: float
    first_s: float
    cpu: Seconds


def plan_of(measured: Measured, *, rag: bool, seconds: float = 10.0) -> Plan:
    """A plan from one client's costs, and from the processor time, not the speed, of the largest crowd."""
    way = next(way for way in measured.ways if way.rag is rag)
    short, long = way.short, way.long
    costs = {}
    for name in STATIONS:
        piece = max(0.0, (long.cpu[name] - short.cpu[name]) / (long.pieces - short.pieces))
        costs[name] = Cost(max(0.0, short.cpu[name] - short.pieces * piece), piece)
    remembering = 0.0 if rag else sum(long.cpu[name] for name in SEARCH) / long.seconds
    costs |= {} if rag else dict.fromkeys(SEARCH, Cost())
    token = (long.cpu[ENGINE] - short.cpu[ENGINE]) / (long.tokens - short.tokens)
    row = token * (measured.growth - 1) / 7
    engine = Engine(max(0.0, short.cpu[ENGINE] - (short.tokens - 1) * token), token - row, row)
    plan = Plan(
        costs=costs | {ENGINE: Cost()},
        engine=engine,
        tokens=measured.tokens,
        cores=measured.cores,
        commit_s=measured.commit_s,
        background=sum(way.idle.values()) + remembering,
        crowded=dict.fromkeys(STATIONS, 1.0),
    )
    crowd = way.crowds[-1]
    told = World(plan, crowd.clients).run(seconds).cpu
    same = dict.fromkeys(STATIONS, 0.0) | {ENGINE: engine.prefill}
    changing = {name: (crowd.cpu[name] - same[name], told[name] - same[name]) for name in STATIONS}
    crowded = {name: max(0.0, seen / alone) if alone > 0 else 1.0 for name, (seen, alone) in changing.items()}
    return replace(plan, crowded=crowded)


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


@dataclass
class Answer:
    """One that the simulated engine writes. left: tokens; said: there is a piece; sent: when the last one went out."""

    left: int
    said: simpy.Event
    over: simpy.Event
    sent: float = -1.0


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
        self.inside = [0] * plan.gateways  # requests in each gateway
        self.spent = dict.fromkeys(STATIONS, 0.0)
        self.firsts: list[float] = []
        self.ended = 0

    def spend(self, name: str, which: int, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Processor time of the process `name`, the one numbered so, as it is with what is in the graph now."""
        inside = sum(self.inside) / (self.plan.engines if name == ENGINE else self.plan.gateways)
        crowded = self.plan.crowded[name]
        yield from self.work(name, which, seconds * (crowded + (1 - crowded) / max(1.0, inside)))

    def work(self, name: str, which: int, seconds: float) -> Generator[simpy.Event, Any, None]:
        """So much processor time of it, whoever else is there."""
        kind = "client" if name == CLIENT else "engine" if name == ENGINE else "gateway"
        machines = self.machines[kind]
        number = which % (self.clients if name == CLIENT and self.plan.apart else len(machines))
        self.spent[name] += seconds
        thread = self.threads.setdefault((name, number), simpy.Resource(self.world, 1))
        yield from machines[number % len(machines)].work(thread, seconds)

    def client(self, number: int) -> Generator[simpy.Event, Any, None]:
        """Asks again as soon as it is answered."""
        round_ = number
        while True:
            round_ += 1
            gateway, engine = number % self.plan.gateways, round_ % self.plan.engines
            self.inside[gateway] += 1
            yield from self.request(number, gateway, engine)
            self.inside[gateway] -= 1
            self.ended += 1

    def request(self, number: int, gateway: int, engine: int) -> Generator[simpy.Event, Any, None]:
        """One answer, streamed."""
        plan, began, first = self.plan, self.world.now, True
        for name in (CLIENT, *BEFORE):
            yield from self.spend(name, number if name == CLIENT else gateway, plan.costs[name].request)
        answer, over = Answer(plan.tokens, self.world.event(), self.world.event()), False
        self.world.process(self.engaged(answer, engine))
        while not over:
            yield answer.said
            over, answer.said = answer.over.triggered, self.world.event()
            for name in (*BEFORE, CLIENT):
                yield from self.spend(name, number if name == CLIENT else gateway, plan.costs[name].piece)
            if first:
                self.firsts.append(self.world.now - began)
            first = False
        self.world.process(self.spend(OTHER, gateway, plan.costs[OTHER].request))
        yield from self.spend(DISK, gateway, plan.costs[DISK].request)
        yield self.world.timeout(plan.commit_s)

    def engaged(self, answer: Answer, number: int) -> Generator[simpy.Event, Any, None]:
        """An answer with a slot, until it is over."""
        with self.slots[number].request() as slot:
            yield slot
            self.waiting[number].append(answer)
            if not self.woken[number].triggered:
                self.woken[number].succeed()
            yield answer.over

    def run_engine(self, number: int) -> Generator[simpy.Event, Any, None]:
        """Steps over all answers that run; a prompt that comes is loaded before the next one, and begins its answer."""
        engine, running = self.plan.engine, list[Answer]()
        while True:
            if not running and not self.waiting[number]:
                self.woken[number] = self.world.event()
                yield self.woken[number]
            arrived, self.waiting[number] = self.waiting[number], []
            for answer in arrived:
                yield from self.work(ENGINE, number, engine.prefill)
                self.say(answer)
            running = [answer for answer in (*running, *arrived) if answer.left]
            if running:
                yield from self.spend(ENGINE, number, engine.step + len(running) * engine.row)
            for answer in running:
                self.say(answer)

    def say(self, answer: Answer) -> None:
        """One token more."""
        answer.left -= 1
        if answer.left == 0:
            answer.over.succeed()
        if answer.left == 0 or self.world.now - answer.sent >= FLUSH_S:
            answer.sent = self.world.now
            if not answer.said.triggered:  # else it joins the piece that waits
                answer.said.succeed()

    def background(self) -> Generator[simpy.Event, Any, None]:
        """What the machine does when nobody asks."""
        while True:
            began = self.world.now
            yield from self.machines["gateway"][0].work(simpy.Resource(self.world, 1), 0.05 * self.plan.background)
            yield self.world.timeout(max(0.0, began + 0.05 - self.world.now))

    def run(self, seconds: float) -> Point:
        """Simulate so long, the first fifth not counted."""
        self.world.process(self.background())
        for number in range(self.plan.engines):
            self.world.process(self.run_engine(number))
        for number in range(self.clients):
            self.world.process(self.client(number))
        self.world.run(seconds / 5)
        ended, begun, spent = self.ended, len(self.firsts), dict(self.spent)
        self.world.run(seconds)
        counted = self.ended - ended
        cpu = {name: (self.spent[name] - spent[name]) / max(1, counted) for name in STATIONS}
        return Point(counted / (seconds * 4 / 5), statistics.median(self.firsts[begun:]), cpu)
