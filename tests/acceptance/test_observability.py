"""What a running MindFu tells those who operate it: traces, metrics, logs, Ray's dashboard; and a backup beside it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.acceptance.conftest import ROOT, Server
from tests.collector import Collector

pytestmark = pytest.mark.integration
SECRET = "Zanzibar"  # of the question; it may stand in no span and no log line
QUESTION = [{"role": "user", "content": f"When does the backup of the file server run? {SECRET}"}]
WAIT_S = 60
LOOK = """
import json, sys
from pathlib import Path
from deployments.joining import address_of, joined
home = Path(sys.argv[1])
with joined(home, address_of(home)):
    import ray
    worker = ray._private.worker
    print(json.dumps({
        "dashboard": worker.get_dashboard_url(), "logs": worker._global_node.get_logs_dir_path(),
        "metrics": ray.nodes()[0]["MetricsExportPort"],
    }))
"""


@dataclass(frozen=True)
class Ray:
    """The Ray that the server runs on: its dashboard, its agent's page of numbers, and where replicas log."""

    dashboard: str
    metrics: str
    logs: Path


@pytest.fixture(scope="module")
def ray(server: Server) -> Ray:
    """As a driver of it is told; beside it, a document."""
    looked = subprocess.run(
        [sys.executable, "-c", LOOK, str(server.home)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert looked.returncode == 0, looked.stderr
    found = json.loads(looked.stdout.splitlines()[-1])
    with server.http() as http, (ROOT / "docs" / "example-handbook.md").open("rb") as handbook:
        form = {"collection": "watched"}
        http.post("/v1/documents/upload", files={"file": handbook}, data=form).raise_for_status()
    page = f"http://127.0.0.1:{found['metrics']}/metrics"
    return Ray(f"http://{found['dashboard']}", page, Path(found["logs"]) / "serve")


def until(look: Callable[[], Any]) -> Any:
    """What is seen, as soon as there is something; what others collect in their own time has no event."""
    deadline = time.monotonic() + WAIT_S
    while not (seen := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return seen


def ask(server: Server, **headers: str) -> None:
    body = {"model": "mindfu-demo", "messages": QUESTION, "temperature": 0, "rag": {"collections": ["watched"]}}
    with server.http() as http:
        http.post("/v1/chat/completions", json=body, headers=headers).raise_for_status()


def test_a_request_is_one_trace_from_the_client_to_the_engine(server: Server, ray: Ray, traces: Collector):
    """The caller's own span is its root; gateway, retriever, embedder, vector store and engine are in it, and the
    stages of the answer; nothing that anybody wrote is.
    """
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    ask(server, traceparent=f"00-{trace_id}-{parent}-01")
    wanted = {"retrieve", "measure", "record", "chat mindfu-demo", "queue", "prefill", "decode"}
    parts = {"Gateway", "Retriever", "Embedder", "VectorStore", "LlamaCpp"}

    def whole() -> list[Span]:
        spans = traces.spans(trace_id)
        names = {span.name for span in spans}
        entered = {part for part in parts for name in names if name.startswith(f"replica_handle_request {part}")}
        known = {parent, *(span.span_id.hex() for span in spans)}
        connected = all(span.parent_span_id.hex() in known for span in spans)
        return spans if wanted <= names and entered == parts and connected else []

    spans = until(whole)
    assert SECRET.encode() not in b"".join(span.SerializeToString() for span in spans)
    (chat,) = [span for span in spans if span.name == "chat mindfu-demo"]
    about = {item.key: item.value for item in chat.attributes}
    assert about["gen_ai.usage.input_tokens"].int_value > 10
    assert about["mindfu.sources"].int_value == 1


def test_the_log_has_a_line_of_json_for_each_answer(server: Server, ray: Ray):
    """With the client's request id, and without what was said."""
    ask(server, **{"x-request-id": "my-own-id"})

    def line() -> str | None:
        logs = "".join(file.read_text() for file in ray.logs.glob("replica_mindfu_Gateway_*.log"))
        return next((line for line in logs.splitlines() if '"x_request_id": "my-own-id"' in line), None)

    told = json.loads(until(line))
    assert (told["status"], told["model"], told["sources"]) == ("complete", "mindfu-demo", 1)
    assert told["deployment"].endswith("Gateway")
    assert told["latency_s"] > 0
    assert all(SECRET not in file.read_text() for file in ray.logs.glob("*.log"))


def test_ray_collects_our_numbers_from_every_replica(server: Server, ray: Ray):
    """Requests and times of the gateway, the engine's and the librarian's readings, each with its replica."""
    ask(server)
    wanted = ("requests_total", "first_token_seconds_bucket", "tokens_total", "engine_slots", "librarian_documents")

    def seen() -> str | None:
        page = httpx.get(ray.metrics, timeout=30).text
        return page if all(f"ray_mindfu_{name}{{" in page for name in wanted) else None

    lines = until(seen).splitlines()
    slots = [line for line in lines if line.startswith("ray_mindfu_engine_slots{")]
    assert slots
    assert all('deployment="LlamaCpp"' in line and 'replica="' in line and line.endswith(" 8.0") for line in slots)


def test_rays_dashboard_shows_the_graph(server: Server, ray: Ray):
    """Every part by its name, with its replicas and their state; to nobody without the token."""
    url = f"{ray.dashboard}/api/serve/applications/"
    assert httpx.get(url, timeout=30).status_code == 401
    token = {"authorization": f"Bearer {(server.home / 'keys' / 'ray_token').read_text()}"}
    shown = httpx.get(url, headers=token, timeout=30).raise_for_status().json()["applications"]["mindfu"]
    assert shown["status"] == "RUNNING"
    parts = {"Gateway", "LlamaCpp", "Embedder", "Retriever", "Librarian", "VectorStore", "Tools", "Trainer"}
    assert shown["deployments"].keys() == parts
    for part in parts:
        (replica,) = shown["deployments"][part]["replicas"]
        assert (shown["deployments"][part]["status"], replica["state"]) == ("HEALTHY", "RUNNING")


def test_a_backup_is_taken_while_the_server_runs(server: Server, ray: Ray, tmp_path: Path):
    """And restored, it holds the documents and the conversations."""

    def mindfu(home: Path, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "deployments.cli", *arguments, "--json"]
        env = {**os.environ, "MINDFU_HOME": str(home)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    taken = mindfu(server.home, "backup", str(tmp_path / "backups"))
    assert taken["incomplete"] == []
    assert taken["counts"]["documents"] >= 1
    assert taken["counts"]["chunks"] > taken["counts"]["documents"]
    restored = mindfu(tmp_path / "new", "restore", taken["archive"])
    assert restored["counts"] == taken["counts"]
