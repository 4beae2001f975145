"""One running MindFu for all acceptance tests: started as a user starts it, taken down as a user takes it down."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
START_S, STOP_S = 180, 90


@dataclass(frozen=True)
class Server:
    """A MindFu of our own, on a port and in a home folder of its own."""

    url: str
    home: Path
    process: subprocess.Popen[str]

    def openai(self) -> openai.OpenAI:
        """The stock client; no retries, so that a test sees what happened."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def http(self) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=120)

    def replica(self, name: str) -> psutil.Process:
        """The process of a deployment's replica."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if f"mindfu:{name}" in " ".join(process.cmdline()):
                    return process
        raise AssertionError(name)

    def metric(self, name: str) -> float:
        """One sample of the Prometheus page."""
        with self.http() as http:
            lines = http.get("/metrics").text.splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " "))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`mindfu serve` with the shipped configuration, but for the port."""
    with running(tmp_path_factory.mktemp("mindfu")) as server:
        yield server


@contextlib.contextmanager
def running(folder: Path, **llm: object) -> Iterator[Server]:
    """A server with the shipped configuration, but for the port. llm: settings of the model that are otherwise."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"][0]["args"]["llm"] |= llm
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = config["http_options"]["port"] = probe.getsockname()[1]
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    home = folder / "home"
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "serve", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MINDFU_HOME": str(home)},
    )
    try:
        said = _read_until(process, lambda line: "MindFu answers" in line)
        assert "MindFu answers" in said[-1], "\n".join(said)
        yield Server(f"http://127.0.0.1:{port}", home, process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=STOP_S)[0]
        assert process.returncode == 0, rest
        assert "MindFu stopped." in rest
        assert psutil.wait_procs(family, timeout=20)[1] == [], "processes were left behind"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_S)


def _read_until(process: subprocess.Popen[str], found: Callable[[str], bool]) -> list[str]:
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line.rstrip())
        if found(line):
            break
    return said
