"""`mindfu doctor` is right: on a bare machine, with PostgreSQL down, with the port taken, with no model."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from pydantic import SecretStr

from app import checkup
from app.checkup import Finding
from app.settings import FurtherModel, LLMSettings, Secrets
from deployments import cli_doctor
from tests.command import mindfu
from tests.ports import free_port

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is not there yet, and no stores of one's own."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("MINDFU_") and name != "MINDFU_HOME"]:
        monkeypatch.delenv(name)


def configuration(folder: Path, port: int, **llm: object) -> Path:
    """The shipped one, on another port, with another model."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["llm"] |= llm
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_a_bare_machine_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Everything that is not there yet is made by the first start; looking makes nothing."""
    assert mindfu("doctor", str(configuration(tmp_path, free_port()))) == 0
    told = capsys.readouterr().out
    for line in (
        "✓ Python: 3.", "✓ llama.cpp: ", "✓ configuration: ", "is free: no server runs there",
        "✓ PostgreSQL: an embedded one, which the first start makes", "✓ Qdrant: the embedded one",
        "✓ model mindfu-demo: ", "✓ embedding model: all-MiniLM-L6-v2", "All is well.",
    ):  # fmt: skip
        assert line in told
    assert not (tmp_path / "home").exists()


def test_all_that_is_wrong_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """PostgreSQL down, the port taken, no model: three findings, and a status that a script can use."""
    monkeypatch.setenv("MINDFU_POSTGRES_URL", "postgresql://me:secret@127.0.0.1:1/mindfu")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = configuration(tmp_path, port, model="/nowhere/absent.gguf")
        assert mindfu("doctor", str(config), "--json") == 1
    told = capsys.readouterr().out
    findings = {one["what"]: one for one in json.loads(told)["findings"] if one["state"] == "failure"}
    assert set(findings) == {"port", "PostgreSQL", "model mindfu-demo"}
    assert f"{port} on 127.0.0.1 is taken by " in findings["port"]["told"]
    assert "http_options.port" in findings["port"]["remedy"]
    assert "the server at 127.0.0.1:1 does not answer" in findings["PostgreSQL"]["told"]
    assert "MINDFU_POSTGRES_URL" in findings["PostgreSQL"]["remedy"]
    assert "/nowhere/absent.gguf" in findings["model mindfu-demo"]["told"]
    assert "Give the path of a .gguf" in findings["model mindfu-demo"]["remedy"]
    assert "secret" not in told


def test_a_folder_without_a_configuration_is_told(tmp_path: Path):
    """And so is one with a mistake in it; the other checks go on with the defaults."""
    (finding,) = cli_doctor._configuration(tmp_path / "none.yaml", Secrets(), tmp_path)
    assert (finding.state, "mindfu doctor CONFIG" in finding.remedy) == ("failure", True)
    assert cli_doctor._read(tmp_path / "none.yaml")[1:] == ("127.0.0.1", 11434)
    config = configuration(tmp_path, 1, windw=3)
    (finding,) = cli_doctor._configuration(config, Secrets(), tmp_path)
    assert "did you mean 'window'" in finding.told
    assert cli_doctor._read(config)[0].llm == LLMSettings()


def test_gpus_and_resources_that_are_not_here_are_told(capsys: pytest.CaptureFixture[str]):
    """Before anybody waits for them."""
    profile = str(ROOT / "profiles" / "hybrid.yaml")
    assert mindfu("doctor", profile) == 1
    assert "✗ room: they ask for 7 of the resource 'head' (Ray has 0)" in capsys.readouterr().out


async def test_the_embedded_postgresql_is_asked_where_it_runs(postgres_home: Path, pool: asyncpg.Pool):
    """By a connection; one that is stopped starts by itself."""
    import asyncio

    finding = await asyncio.to_thread(checkup.postgres, Secrets(), postgres_home)
    assert (finding.state, "the embedded one, version 18" in finding.told) == ("ok", True)


def test_an_embedded_postgresql_that_is_stopped_is_fine(tmp_path: Path):
    """It runs while something uses it."""
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    finding = checkup.postgres(Secrets(), tmp_path)
    assert (finding.state, "now nothing does" in finding.told) == ("ok", True)


def test_stores_by_url_that_are_down_are_told_without_their_secrets():
    """With the variable to correct."""
    secrets = Secrets(qdrant_url="http://user:secret@127.0.0.1:1", qdrant_api_key=SecretStr("secret"))
    finding = checkup.qdrant(secrets)
    assert finding.state == "failure"
    assert "MINDFU_QDRANT_URL" in finding.remedy
    assert "secret" not in finding.told


def test_a_qdrant_that_refuses_the_key_is_told():
    """By its status."""
    with answering(403, "Forbidden") as port:
        finding = checkup.qdrant(Secrets(qdrant_url=f"http://me:secret@127.0.0.1:{port}"))
    assert finding.told == f"the server at 127.0.0.1:{port} answers 403"


@contextmanager
def answering(status: int, body: dict[str, Any] | str) -> Iterator[int]:
    """A program on a port, which says the same to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield int(http.server_port)
        http.shutdown()
        thread.join()


def test_a_running_server_is_no_taken_port():
    """Its parts are told where they are not well."""
    health = {
        "status": "degraded",
        "model_key": "demo",
        "version": "1",
        "parts": {"llm": "ok", "postgres": "it is away"},
    }
    with answering(503, health) as port:
        running, part = checkup.server("127.0.0.1", port)
    assert (running.state, "MindFu 1 answers, its model is demo" in running.told) == ("ok", True)
    assert (part.what, part.state, part.told) == ("server: postgres", "failure", "it is away")
    with answering(200, "<html>") as port:
        (taken,) = checkup.server("127.0.0.1", port)
    assert taken.state == "failure"


def test_models_are_here_or_will_be_downloaded_or_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that is no model is told, too, and one that does not fit into memory with both numbers."""
    (tmp_path / "text.gguf").write_text("hello")
    llm = LLMSettings(
        slots=8, window=2**20, models={
            "hub": FurtherModel(model="hf://org/repo/file.gguf"),
            "text": FurtherModel(model=str(tmp_path / "text.gguf")),
        },
    )  # fmt: skip
    for offline, state in ((True, "failure"), (False, "warning")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        demo, hub, text = checkup.models(llm, tmp_path, running=False)
        assert (hub.state, text.state) == (state, "failure")
    assert "is not a GGUF file" in text.told
    assert (demo.state, "GB are free" in demo.told) == ("failure", True)
    assert "Use a smaller quantisation" in demo.remedy


def test_another_python_is_refused():
    """With the ones that will do."""
    assert [checkup.python(version).state for version in ((3, 10), (3, 11), (3, 13), (3, 14))] == [
        "failure", "ok", "ok", "failure",
    ]  # fmt: skip


def test_a_check_that_breaks_is_a_finding():
    """The others are told all the same."""

    def broken() -> list[Finding]:
        raise RuntimeError("surprise")

    (finding,) = cli_doctor._safely("GPU", broken)
    assert (finding.what, finding.state, "surprise" in finding.told) == ("GPU", "failure", True)
