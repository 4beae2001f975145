"""What `mindfu doctor` looks at: each check tells what it found and, where something is wrong, what to do.

Nothing is changed by looking: no database is made or migrated, no model downloaded, nothing started for longer than a
trial of llama.cpp takes. A check returns findings, and raises nothing that can be foreseen.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import httpx
import psutil

from app import gpus
from app.client import Client
from app.embedding_source import located
from app.errors import MindFuError, Misconfigured
from app.llama import memory
from app.llama.probe import probe
from app.llama.source import DEMO_FILE, locate, present
from app.messages import WELL
from app.ports import is_free
from app.postgres import AWAY
from app.postgres_home import PostgresHome, binaries
from app.settings import AnyLLMSettings, LLMSettings, Secrets
from app.vllm import source as folders
from app.vllm.settings import VllmSettings

State = Literal["ok", "warning", "failure"]
PYTHONS = ((3, 11), (3, 13))
GB = 10**9
LEAST_DISK, ENOUGH_DISK = 1 * GB, 20 * GB
ENOUGH_RAM = 30 * GB  # what is sold as 32 GB
OBJECT_STORE = 512 * 2**20  # of Ray, in /dev/shm
WAIT_S = 5.0
TRAINING = ("peft", "trl", "bitsandbytes", "mlflow")


class Finding(NamedTuple):
    """what: was looked at. told: what was found. remedy: what to do; empty where there is nothing to do."""

    what: str
    state: State
    told: str
    remedy: str = ""


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Whether this Python is one that we support."""
    told = f"{version[0]}.{version[1]}, {sys.executable}"
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return Finding("Python", "ok", told)
    return Finding("Python", "failure", told, "Use Python 3.11, 3.12 or 3.13: `make clean serve PYTHON=python3.11`.")


def llama_cpp() -> Finding:
    """Whether llama.cpp, as it was built here, decodes: tried in a child process, with the demo model."""
    import llama_cpp as built

    try:
        probe(DEMO_FILE)
    except Misconfigured as error:
        return Finding("llama.cpp", "failure", error.problem, f"{error.remedy}.")
    on = "with GPU support" if built.llama_supports_gpu_offload() else "for CPUs"
    return Finding("llama.cpp", "ok", f"{built.__version__}, built {on}, decodes")


def graphics() -> Iterator[Finding]:
    """The GPUs, and what each can do with what is installed."""
    try:
        found = gpus.gpus()
    except gpus.DriverFailed as error:
        remedy = "Install or load the driver again (`nvidia-smi` must work). Until then, models run on CPUs."
        yield Finding("GPU", "warning", str(error).rstrip("."), remedy)
        return
    if not found:
        yield Finding("GPU", "ok", "none by NVIDIA: models run on CPUs (gpu_layers: 0)")
        return
    import llama_cpp as built
    import torch

    offloads = built.llama_supports_gpu_offload()
    for gpu in found:
        runs, trains = gpus.llama_cpp(gpu), gpus.training(gpu, torch.cuda.get_arch_list())
        if runs.startswith("yes") and not offloads:
            runs = "not by this build"
        told = f"{gpu}: llama.cpp {runs}; vLLM {gpus.vllm(gpu)}; training {trains}"
        remedy = ""
        if runs == "not by this build":
            remedy = "For GPUs: PIP_NO_CACHE_DIR=1 CMAKE_ARGS=-DGGML_CUDA=on make clean serve, and gpu_layers: -1."
        elif trains.startswith("no"):
            remedy = (
                "For training: remove .venv/torch and run `make install`, which picks PyTorch's build by the driver."
            )
        yield Finding("GPU", "warning" if remedy else "ok", told, remedy)


def machine(home: Path) -> Iterator[Finding]:
    """Memory, shared memory, and the disk that the home is on."""
    ram = psutil.virtual_memory()
    more = "" if ram.total >= ENOUGH_RAM else "; 32 GB are recommended for models beyond the demo's"
    yield Finding("memory", "ok", f"{ram.available / GB:.1f} of {ram.total / GB:.1f} GB free{more}")
    shared = Path("/dev/shm")  # noqa: S108 - where Ray puts its objects
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < OBJECT_STORE:
        remedy = "In Docker: run it with --shm-size=1g."
        told = f"{shared} has {size / 2**20:.0f} MiB, Ray wants {OBJECT_STORE / 2**20:.0f}"
        yield Finding("shared memory", "warning", told, remedy)
    yield from _disk(home)


def _disk(home: Path) -> Iterator[Finding]:
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        yield Finding("disk", "failure", f"{there} cannot be written to", "Set MINDFU_HOME to a folder of yours.")
        return
    free = shutil.disk_usage(there).free
    told = f"{free / GB:.1f} GB free for {home}"
    if free < LEAST_DISK:
        yield Finding("disk", "failure", told, "Make room: databases stop when a disk is full.")
    elif free < ENOUGH_DISK:
        yield Finding("disk", "warning", told, "Room for 20 GB is recommended for models, and 100 GB with training.")
    else:
        yield Finding("disk", "ok", told)


def server(host: str, port: int) -> tuple[Finding, ...]:
    """Whether the port is free, or who has it; of a server of ours, the state of its parts."""
    address = "127.0.0.1" if host in {"0.0.0.0", "", "::"} else host  # noqa: S104 - a comparison
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    if is_free(host, port):
        return (Finding("port", "ok", f"{port} on {host} is free: no server runs there"),)
    try:
        with Client(url) as client:
            health = client.health()
    except MindFuError:
        whose = _owner(port) or f"another program; `lsof -i :{port}` may name it"
        remedy = "Stop it, or choose another http_options.port in the configuration."
        return (Finding("port", "failure", f"{port} on {host} is taken by {whose}", remedy),)
    running = Finding(
        "port", "ok", f"{port} on {host}: MindFu {health.version} answers, its model is {health.model_key}"
    )
    wrong = [(part, state) for part, state in health.parts.items() if state not in WELL]
    remedy = f"Its log is serve.log in the home folder; `curl {url}/health` shows when it is well again."
    return (running, *(Finding(f"server: {part}", "failure", state, remedy) for part, state in wrong))


def _owner(port: int) -> str | None:
    """The program that listens on a port, where we may know."""
    try:
        listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        pid = next((one.pid for one in listening if one.pid and one.laddr and one.laddr.port == port), None)
        return f"{psutil.Process(pid).name()} (process {pid})" if pid else None
    except psutil.Error:
        return None


def postgres(secrets: Secrets, home: Path) -> Finding:
    """Whether PostgreSQL answers; of the embedded one, whether it can."""
    if secrets.postgres_url is not None:
        url = secrets.postgres_url.get_secret_value()
        remedy = "Start it, or correct MINDFU_POSTGRES_URL; without that variable an embedded one runs. "
        remedy += "A server that runs goes on answering, and keeps its turns in a spool until it is back."
        return _reached(url, f"the server at {_place(url)}", remedy)
    try:
        binaries()
    except Misconfigured as error:
        return Finding("PostgreSQL", "failure", error.problem, error.remedy)
    embedded = PostgresHome(home)
    if not embedded.data.exists():
        return Finding("PostgreSQL", "ok", "an embedded one, which the first start makes")
    if embedded.postmaster() is None:
        return Finding("PostgreSQL", "ok", "the embedded one, which runs while something uses it; now nothing does")
    remedy = f"Its log is {embedded.log}. If it hangs, end its process: the next command starts it again."
    url = f"postgresql://postgres@/postgres?host={embedded.run}&port=5432"
    return _reached(url, "the embedded one", remedy)


def _reached(url: str, which: str, remedy: str) -> Finding:
    async def version() -> str:
        connection = await asyncpg.connect(url, timeout=WAIT_S)
        try:
            return str(await connection.fetchval("show server_version", timeout=WAIT_S))
        finally:
            connection.terminate()

    try:
        return Finding("PostgreSQL", "ok", f"{which}, version {asyncio.run(version())}, answers")
    except (*AWAY, asyncpg.PostgresError, ValueError) as error:
        reason = str(error) or f"no answer within {WAIT_S:g} s"
        return Finding("PostgreSQL", "failure", f"{which} does not answer: {reason}", remedy)


def qdrant(secrets: Secrets) -> Finding:
    """Whether Qdrant answers; the embedded one is a library."""
    if secrets.qdrant_url is None:
        if find_spec("qdrant_edge") is None:
            remedy = "Run `make install`, or set MINDFU_QDRANT_URL."
            return Finding("Qdrant", "failure", "the package qdrant-edge-py is not installed", remedy)
        return Finding("Qdrant", "ok", "the embedded one, in the server's own process")
    key = secrets.qdrant_api_key
    headers = {"api-key": key.get_secret_value()} if key else {}
    place = _place(secrets.qdrant_url)
    remedy = "Start it, or correct MINDFU_QDRANT_URL and MINDFU_QDRANT_API_KEY; without them an embedded one runs."
    try:
        answer = httpx.get(f"{secrets.qdrant_url.rstrip('/')}/collections", headers=headers, timeout=WAIT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding("Qdrant", "failure", f"the server at {place} does not answer: {reason}", remedy)
    if not answer.is_success:
        return Finding("Qdrant", "failure", f"the server at {place} answers {answer.status_code}", remedy)
    return Finding("Qdrant", "ok", f"the server at {place} answers")


def models(llm: AnyLLMSettings, home: Path, *, running: bool) -> Iterator[Finding]:
    """Whether each model's file is here, is one, and fits. running: it may be in memory already."""
    if isinstance(llm, VllmSettings):
        yield _vllm()
        yield _folder(llm, home)
        return
    for name in (llm.name, *llm.models):
        yield _model(name, llm.of(name), home, running=running)


def _vllm() -> Finding:
    if find_spec("vllm") is None:
        remedy = f"Run `{folders.INSTALL}` on the machines with the GPUs."
        return Finding("vLLM", "warning", "llm.engine is vllm, which is not installed on this machine", remedy)
    return Finding("vLLM", "ok", "installed")


def _folder(settings: VllmSettings, home: Path) -> Finding:
    what = f"model {settings.name}"
    if folders.present(settings.model, home) is None and "://" in settings.model:
        return _not_here(what, settings.model)
    try:
        folder = folders.locate(settings.model, home)
    except Misconfigured as error:
        return Finding(what, "failure", f"{error.setting}: {error.problem}", f"{error.remedy.rstrip('.')}.")
    return Finding(what, "ok", f"{folder}, weights of {folders.weights_bytes(folder) / GB:.1f} GB")


def _not_here(what: str, source: str) -> Finding:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        remedy = "Unset HF_HUB_OFFLINE, or download it elsewhere and give its path."
        return Finding(what, "failure", f"{source} is not here, and HF_HUB_OFFLINE forbids downloads", remedy)
    return Finding(what, "warning", f"{source} is not here yet", "The next start downloads it.")


def _model(name: str, settings: LLMSettings, home: Path, *, running: bool) -> Finding:
    what, source = f"model {name}", settings.model
    path = present(source, home)
    if path is None and "://" in source:
        return _not_here(what, source)
    try:
        path = locate(source, home)
        if not running:
            memory.check(path, settings)
        needed = memory.need(path, settings)
    except Misconfigured as error:
        return Finding(what, "failure", f"{error.setting}: {error.problem}", f"{error.remedy.rstrip('.')}.")
    return Finding(what, "ok", f"{path}, takes {needed}")


def embedding(name: str) -> Finding:
    """Whether the embedding model is here."""
    try:
        folder = located(name)
    except Misconfigured as error:
        return Finding("embedding model", "failure", error.problem, error.remedy)
    if folder is None:
        return Finding("embedding model", "warning", f"{name} is not here yet", "The next start downloads it.")
    return Finding("embedding model", "ok", f"{name}, {folder}")


def learning() -> Finding:
    """Whether what training needs is installed. It is optional."""
    missing = [name for name in TRAINING if find_spec(name) is None]
    if missing:
        told = f"not installed ({', '.join(missing)}): this machine serves, and does not train"
        return Finding("training", "ok", told, "To train: `uv sync --frozen --inexact --extra train`.")
    return Finding("training", "ok", "installed")


def _place(url: str) -> str:
    """Host and port of a URL, without its password."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}{f':{parts.port}' if parts.port else ''}"
