"""One running MindFu for all acceptance tests: started as a user starts it, taken down as a user takes it down.

A start takes both cores for half a minute, so a test has a server of its own (`running`) only where it ends it, or
where the settings that it is about would be in the others' way. Those stand in apart/: folders come first, and their
servers have ended when the shared one starts.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import yaml

from tests.collector import Collector
from tests.ports import free_port

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
        """A plain client; without TLS, whose authorities take 50 ms to load each time."""
        return httpx.Client(base_url=self.url, timeout=120, verify=False)

    def replica(self, name: str) -> psutil.Process:
        """The process of a deployment's replica."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if f"mindfu:{name}" in " ".join(process.cmdline()):
                    return process
        raise AssertionError(name)

    def metric(self, name: str) -> float:
        """One sample of the Prometheus page; not a number where it is not there."""
        with self.http() as http:
            lines = http.get("/metrics").text.splitlines()
        samples = (float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " "))
        return next(samples, float("nan"))


@pytest.fixture(scope="session")
def traces() -> Iterator[Collector]:
    """Where the server sends its traces."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, traces: Collector) -> Iterator[Server]:
    """`mindfu serve` with the shipped configuration, but for the port, and with what is off by default: tools, an MCP
    server among them, traces, and a log in JSON.
    """
    mcp = {"test": {"command": [sys.executable, "-m", "tests.mcp_server"], "cwd": str(ROOT)}}
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": traces.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}  # ms, instead of 5 s
    folder, logging = tmp_path_factory.mktemp("mindfu"), {"encoding": "JSON"}
    with running(folder, env=env, logging=logging, tools={"enabled": True, "mcp": mcp}) as server:
        yield server


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    tools: Mapping[str, object] | None = None,
    logging: Mapping[str, object] | None = None,
    deployments: Mapping[str, Mapping[str, object]] | None = None,
    as_json: bool = False,
    **llm: object,
) -> Iterator[Server]:
    """A server with the shipped configuration, but for the port. tools, logging, llm: settings that are otherwise;
    deployments: options by their names; env: further variables; as_json: `--json`, and nothing else on standard output.
    What another one kept in the folder is there again.
    """
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["logging_config"] |= logging or {}
    application = config["applications"][0]
    application["args"]["llm"] |= llm
    application["args"]["tools"] |= tools or {}
    for deployment in application["deployments"]:
        deployment.update((deployments or {}).get(deployment["name"], {}))
    port = config["http_options"]["port"] = free_port()
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    home = folder / "home"
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "serve", str(file), *(["--json"] if as_json else [])],
        stdout=subprocess.PIPE,
        stderr=None if as_json else subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {}), "MINDFU_HOME": str(home)},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        told = [{"state": "answers", "url": url}, {"state": "stopped"}]
        begun, over = map(json.dumps, told) if as_json else ("MindFu answers", "MindFu stopped.")
        said = _read_until(process, lambda line: begun in line)
        assert begun in said[-1], "\n".join(said)
        yield Server(url, home, process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=STOP_S)[0]
        assert process.returncode == 0, rest
        assert over in rest
        assert not as_json or [*said, *rest.splitlines()] == [begun, over]
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
