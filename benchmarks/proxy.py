"""What stands between a client and the engine costs: our whole graph beside a plain proxy and LiteLLM's.

    python -m benchmarks.proxy [--requests 300] [--clients 8] [--no-litellm]

One model that says sixteen digits in a few milliseconds, one engine, and the ways to it over HTTP, in one run: the thin
server alone (`direct`); a plain uvicorn proxy in front of it (benchmarks/plain_proxy.py); LiteLLM's proxy in front of
it, with a key, as its documentation starts it, installed into MINDFU_HOME/benchmarks on first use; and MindFu, whose
engine is a replica of its graph: with a key, every turn recorded in PostgreSQL before its answer ends, RAG off. It is
measured once more with PostgreSQL's `synchronous_commit` off, as it may be set on a server of one's own: an answer then
does not wait for the disk. Each way is asked in turns with `direct`, so that both see the same machine.

added: to the median of `direct`, by the whole of an answer. CPU: of all processes of the way but the engine's, with
Ray's and PostgreSQL's, so that requests per core are those that one busy core of proxy carries; once with, once without
what the way takes when nobody asks. A commit: one fdatasync of 8 kB on this disk.
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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
import yaml

from app.postgres_home import PostgresHome
from app.settings import home
from benchmarks.peers import Load, Server, ours, running
from tests.gguf_factory import chain_model, vocabulary

ROOT = Path(__file__).parents[1]
PORT = 21600
TOKENS = 16
MODEL = "mindfu-demo"
LITELLM = ("litellm[proxy]==1.106.2",)
ENGINE = "LlamaCpp"  # in the name of its replica's process
OWN_PROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}  # Serve's own, in Python


COLUMNS = ("way", "p50 ms", "p99 ms", "added p50 ms", "added, first token ms", "requests/s", "CPU ms", "per core",
           "without idle")  # fmt: skip
HEAD = f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


@dataclass(frozen=True)
class Way:
    """One way to the engine, whose processes have `engine` in their command lines.

    mark: what the command lines of its processes hold that are no children of `pid`.
    """

    name: str
    port: int
    pid: int
    key: str = ""
    mark: str = ""
    engine: str = ENGINE


@dataclass(frozen=True)
class Timed:
    """Of one answer, seconds."""

    first: float
    whole: float


async def ask(http: aiohttp.ClientSession, way: Way, *, stream: bool) -> Timed:
    """One answer, read to its end. Raises AssertionError where it is not the one that was to come."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": stream,
        **({"rag": False} if way.mark else {}),
    }
    headers = {"authorization": f"Bearer {way.key}"} if way.key else {}
    url = f"http://127.0.0.1:{way.port}/v1/chat/completions"
    started, first, said = time.perf_counter(), 0.0, ""
    async with http.post(url, json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        if not stream:
            said = (await answer.json())["choices"][0]["message"]["content"]
        async for part in answer.content:
            if part.startswith(b"data: {"):
                choices = json.loads(part[6:])["choices"]
                text = choices[0]["delta"].get("content") if choices else None
                first = first or (time.perf_counter() - started if text else 0.0)
                said += text or ""
    assert len(said) == TOKENS, f"{way.name} said {said!r}"
    whole = time.perf_counter() - started
    return Timed(first or whole, whole)


def processes(way: Way) -> list[psutil.Process]:
    """All of a way but its engine, and but this one."""
    return [one for one in everything(way) if way.engine not in line(one)]


def everything(way: Way) -> list[psutil.Process]:
    """All processes of a way, but this one."""
    found = {child.pid: child for child in psutil.Process(way.pid).children(recursive=True)}
    found[way.pid] = psutil.Process(way.pid)
    for marked in (one for one in psutil.process_iter() if way.mark and way.mark in line(one)):
        found[marked.pid] = marked
        with suppress(psutil.Error):
            found |= {child.pid: child for child in marked.children(recursive=True)}  # such as PostgreSQL's
    return [one for one in found.values() if one.pid != os.getpid()]


def line(process: psutil.Process) -> str:
    """Its command line; nothing where it ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def cpu(found: list[psutil.Process]) -> float:
    """Seconds of processor time so far."""
    times = [one.cpu_times() for one in found if one.is_running()]
    return sum(one.user + one.system for one in times)


async def idle(way: Way, seconds: float = 3.0) -> float:
    """Cores that a way keeps busy when nobody asks."""
    found = processes(way)
    spent, started = cpu(found), time.perf_counter()
    await asyncio.sleep(seconds)
    return (cpu(found) - spent) / (time.perf_counter() - started)


async def crowd(http: aiohttp.ClientSession, way: Way, clients: int, requests: int) -> tuple[float, float]:
    """(requests/s, CPU seconds per request) of so many clients, each asking again when it has its answer."""
    before = processes(way)
    spent, started, left = cpu(before), time.perf_counter(), requests

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask(http, way, stream=False)

    await asyncio.gather(*(client() for _ in range(clients)))
    return requests / (time.perf_counter() - started), (cpu(before) - spent) / requests


async def row(way: Way, direct: Way, clients: int, requests: int) -> str:
    """Measure a way, in turns with `direct`."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as http:
        for _ in range(30):
            await ask(http, way, stream=True)
            await ask(http, way, stream=False)
        whole: dict[bool, tuple[list[Timed], list[Timed]]] = {True: ([], []), False: ([], [])}
        for _ in range(requests // 2):
            for stream, (theirs, alone) in whole.items():
                theirs.append(await ask(http, way, stream=stream))
                alone.append(await ask(http, direct, stream=stream))
        at_rest = await idle(way)
        rate, spent = await crowd(http, way, clients, requests)
    plain, alone = whole[False]
    streamed, streamed_alone = whole[True]
    p50 = 1000 * statistics.median(one.whole for one in plain)
    added = p50 - 1000 * statistics.median(one.whole for one in alone)
    first = 1000 * (
        statistics.median(one.first for one in streamed) - statistics.median(one.first for one in streamed_alone)
    )
    p99 = 1000 * statistics.quantiles([one.whole for one in plain], n=100)[98]
    numbers = (f"{one:.1f}" for one in (p50, p99, added, first))
    told = f"{rate:.0f} | {1000 * spent:.2f} | {1 / spent:.0f} | {1 / (spent - at_rest / rate):.0f}"
    return f"| {way.name} | {' | '.join(numbers)} | {told} |"


@asynccontextmanager
async def plain(direct: Way) -> AsyncIterator[Way]:
    """A proxy of thirty lines."""
    command = [sys.executable, "-m", "benchmarks.plain_proxy", str(PORT + 1), f"http://127.0.0.1:{direct.port}"]
    async with running("uvicorn", command, PORT + 1) as server:
        yield _way(server)


def _install(venv: Path) -> None:
    subprocess.run([sys.executable, "-m", "uv", "venv", "-q", "--clear", str(venv)], check=True)
    install = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(venv / "bin" / "python")]
    subprocess.run([*install, *LITELLM], check=True)


@asynccontextmanager
async def litellm(direct: Way, folder: Path) -> AsyncIterator[Way]:
    """LiteLLM's proxy, one worker, with a master key and no database."""
    venv = home() / "benchmarks" / "litellm"
    if not (venv / "bin" / "litellm").is_file():
        await asyncio.to_thread(_install, venv)
    upstream = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{direct.port}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": upstream}],
        "general_settings": {"master_key": "sk-benchmark"},
    }
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(venv / "bin" / "litellm"), "--config", str(file), "--port", str(PORT + 2), "--host", "127.0.0.1"]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    async with running("LiteLLM", command, PORT + 2, environment, "/health/liveliness") as server:
        yield _way(server, "sk-benchmark")


@asynccontextmanager
async def mindfu(
    model: str, folder: Path, name: str, further: dict[str, str] | None = None, config: dict[str, Any] | None = None
) -> AsyncIterator[Way]:
    """The whole graph, as a user starts it, with a key. further: of the environment; config: another one."""
    if config is None:
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        config["applications"][0]["args"]["llm"] |= {"model": model, "threads": 1}
    config.setdefault("http_options", {})["port"] = PORT + 3
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = {**os.environ, **(further or {}), "MINDFU_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "deployments.cli"]
    process = await asyncio.create_subprocess_exec(
        *command, "serve", str(file), stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    try:
        assert process.stdout
        while b"MindFu answers" not in (shown := await process.stdout.readline()):
            assert shown, "the graph did not start"
        making = await asyncio.create_subprocess_exec(
            *command,
            "keys",
            "create",
            "--name",
            "benchmark",
            "--json",
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        made, _ = await making.communicate()
        yield Way(name, PORT + 3, process.pid, json.loads(made)["key"], str(folder))
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


async def let_commits_be(home_folder: Path) -> None:
    """Let the embedded PostgreSQL answer before a commit is on the disk."""
    place = {"host": str(PostgresHome(home_folder).run), "user": "postgres", "database": "postgres"}
    connection = await asyncpg.connect(port=5432, **place)
    await connection.execute("alter system set synchronous_commit = off")
    await connection.execute("select pg_reload_conf()")
    await connection.close()


def fdatasync(folder: Path, count: int = 50) -> float:
    """Seconds that this disk takes to keep a page, the median."""
    took = []
    descriptor = os.open(folder / "page", os.O_CREAT | os.O_WRONLY)
    try:
        for _ in range(count):
            os.pwrite(descriptor, bytes(8192), 0)
            began = time.perf_counter()
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
    return statistics.median(took)


def _way(server: Server, key: str = "") -> Way:
    return Way(server.name, server.port, server.pid, key)


async def main() -> None:
    """Measure each way, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--no-litellm", action="store_true")
    parser.add_argument("--own-proxy", action="store_true", help="and MindFu behind Serve's own proxy, not HAProxy")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"{options.requests} requests of {TOKENS} tokens; the crowd is {options.clients} clients")
    with tempfile.TemporaryDirectory() as scratch:
        print(f"a commit takes {1000 * fdatasync(Path(scratch)):.1f} ms")
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = chain_model(folder / "digits.gguf", [vocabulary()[0].index(digit) for digit in "0123456789"])
        async with ours(Load(model, 16, 512, 1), PORT, "direct") as server:
            direct = _way(server)
            print(await row(direct, direct, options.clients, options.requests), flush=True)
            async with plain(direct) as way:
                print(await row(way, direct, options.clients, options.requests), flush=True)
            if not options.no_litellm:
                async with litellm(direct, folder) as way:
                    print(await row(way, direct, options.clients, options.requests), flush=True)
            async with mindfu(str(model), folder, "MindFu") as way:
                print(await row(way, direct, options.clients, options.requests), flush=True)
                await let_commits_be(folder / "home")
                faster = replace(way, name="MindFu, synchronous_commit off")
                print(await row(faster, direct, options.clients, options.requests), flush=True)
            if options.own_proxy:
                async with mindfu(str(model), folder, "MindFu, Serve's own proxy", OWN_PROXY) as way:
                    print(await row(way, direct, options.clients, options.requests), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
