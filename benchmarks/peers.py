"""The servers that our engine is measured against, on the same GGUF: found or built, started, stopped.

llama-server is built from the sources that llama-cpp-python carries, with the compiler flags of our own build, so that
both run the same kernels. llama-cpp-python's example server runs on the library that is installed here; what it needs
besides goes to a folder of its own. Both land under MINDFU_HOME/benchmarks and are built once.
"""

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from app.settings import home

START_TIMEOUT_S = 300.0
EXAMPLE_SERVER_NEEDS = ("sse-starlette", "starlette-context", "pydantic-settings")
CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
NO_AMX = ("-DCMAKE_C_FLAGS=-mno-amx-tile", "-DCMAKE_CXX_FLAGS=-mno-amx-tile")  # as in our Makefile


class Server(NamedTuple):
    """One that runs. pid: for its memory."""

    name: str
    port: int
    pid: int


class Load(NamedTuple):
    """What every server is given alike."""

    model: Path
    slots: int
    window: int
    threads: int


def llama_server(given: Path | None) -> Path:
    """The peer's program: as given, from LLAMA_SERVER, or built (some 12 minutes of one core, once)."""
    named = given or (Path(os.environ["LLAMA_SERVER"]) if os.environ.get("LLAMA_SERVER") else None)
    if named:
        if not named.is_file():
            sys.exit(f"No file {named}. Name llama-server with --peer or LLAMA_SERVER, or neither, to have it built.")
        return named
    folder = home() / "benchmarks" / f"llama-server-{version('llama-cpp-python')}"
    program = folder / "build" / "bin" / "llama-server"
    if not program.is_file():
        _build(folder)
    return program


def _build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    release = f"llama-cpp-python=={version('llama-cpp-python')}"
    pip = [shutil.which("pip") or sys.exit("pip is needed to fetch llama.cpp's sources"), "download", "--no-deps"]
    subprocess.run([*pip, "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder), release], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("*/vendor/llama.cpp"))
    flags = NO_AMX if platform.machine() == "x86_64" else ()
    subprocess.run(["cmake", "-S", str(source), "-B", str(folder / "build"), *CMAKE, *flags], check=True)
    subprocess.run(["cmake", "--build", str(folder / "build"), "--target", "llama-server", "-j1"], check=True)


def release(program: Path) -> str:
    """What llama-server says its version is."""
    told = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    return (told.stderr + told.stdout).strip().splitlines()[0]


@asynccontextmanager
async def ours(load: Load, port: int, name: str = "ours", **settings: object) -> AsyncIterator[Server]:
    """Our engine behind the thin server. settings: further LLMSettings."""
    sizes = {"slots": load.slots, "window": load.window, "threads": load.threads, "queue": 64}
    command = [sys.executable, "-m", "benchmarks.thin_server", str(load.model), str(port), json.dumps(sizes | settings)]
    async with running(name, command, port) as server:
        yield server


@asynccontextmanager
async def theirs(program: Path, load: Load, port: int) -> AsyncIterator[Server]:
    """llama-server with as many slots, of as many tokens each."""
    cells, threads = str(load.slots * load.window), str(load.threads)
    command = [
        str(program), "-m", str(load.model), "--port", str(port), "-np", str(load.slots), "-c", cells,
        "-t", threads, "-tb", threads, "--jinja", "--no-webui", "--log-disable",
    ]  # fmt: skip
    async with running("llama-server", command, port) as server:
        yield server


def _example_needs() -> Path:
    folder = home() / "benchmarks" / "llama-cpp-python-server"
    if not folder.is_dir():
        install = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        subprocess.run([*install, *EXAMPLE_SERVER_NEEDS], check=True)
    return folder


@asynccontextmanager
async def example(load: Load, port: int) -> AsyncIterator[Server]:
    """llama-cpp-python's own server: one request at a time, told not to abort it for the next one."""
    folder = _example_needs()
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(load.model), "--port", str(port),
        "--n_ctx", str(load.window), "--n_threads", str(load.threads), "--n_threads_batch", str(load.threads),
        "--interrupt_requests", "False", "--verbose", "False",
    ]  # fmt: skip
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    async with running("llama-cpp-python", command, port, environment, "/v1/models") as server:
        yield server


@asynccontextmanager
async def running(
    name: str, command: list[str], port: int, environment: Mapping[str, str] | None = None, health: str = "/health"
) -> AsyncIterator[Server]:
    """A server that was started, as soon as it answers 200 at `health`; ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await _answers(port, health):
                if process.returncode is not None:
                    sys.exit(f"{name} ended with code {process.returncode}: {' '.join(command)}")
                await asyncio.sleep(0.2)
        yield Server(name, port, process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    finally:
        writer.close()
