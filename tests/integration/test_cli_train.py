"""`mindfu train` and `mindfu runs` as they are typed, on a real database, where no server runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from app.settings import home
from deployments import cli
from tests.ports import free_port
from train.run import log_file

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def here(pool: asyncpg.Pool, postgres_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The home with the tests' database, and no params.yaml. pool: empties it."""
    monkeypatch.setenv("MINDFU_HOME", str(postgres_home))
    monkeypatch.chdir(tmp_path)
    return


def mindfu(*arguments: str) -> int:
    """Run a command. Returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "/nowhere.jsonl"), "there is no /nowhere.jsonl"),
        (("--set", "tune.base=/nowhere.gguf"), "there is no file /nowhere.gguf"),
        (("--set", "tune.epoch=1"), "tune.epoch"),
        (("--set", "tunee.epochs=1"), "'tunee' is no stage of a run"),
        (("--set", "epochs=1"), "is no STAGE.NAME=VALUE"),
        (("--until", "deploy"), "'deploy' is no stage of a run"),
    ],
)
def test_what_cannot_succeed_is_said_before_anything_is_queued(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
):
    """With what to change, and a status that scripts see."""
    assert mindfu("train", *arguments) == 1
    assert said in capsys.readouterr().err
    assert mindfu("runs", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_runs_are_listed_shown_and_cancelled(capsys: pytest.CaptureFixture[str]):
    """As tables for people, as JSON for programs."""
    assert mindfu("train", "--detach", "--epochs", "2", "--json") == 0
    run = json.loads(capsys.readouterr().out)
    assert (run["state"], run["order"]["parameters"]["tune"]["epochs"]) == ("queued", 2.0)
    assert mindfu("runs", "list") == 0
    assert f"{run['id']}  queued" in capsys.readouterr().out
    assert mindfu("runs", "show", run["id"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"] == []
    assert mindfu("runs", "cancel", run["id"]) == 0
    assert "cancelled" in capsys.readouterr().out
    assert mindfu("runs", "cancel", run["id"]) == 1
    assert mindfu("runs", "logs", "ftjob-none") == 1
    assert "No log of a run 'ftjob-none'" in capsys.readouterr().err
    log = log_file(home(), run["id"])
    log.parent.mkdir(parents=True)
    log.write_text("step 1\n")
    assert mindfu("runs", "logs", run["id"]) == 0
    assert capsys.readouterr().out == "step 1\n"
    assert mindfu("runs", "logs", run["id"], "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"run": run["id"], "log": "step 1\n"}


def test_without_a_server_the_command_does_the_work(capsys: pytest.CaptureFixture[str]):
    """And ends with the run's reason, as a status too."""
    assert mindfu("train") == 1
    told = capsys.readouterr()
    assert "is queued." in told.out
    assert "Found 0 rated or corrected answers in 0 conversations" in told.err


def test_what_is_to_be_forgotten_is_named(capsys: pytest.CaptureFixture[str]):
    """Nothing is forgotten by mistake."""
    assert mindfu("forget") == 1
    assert "Name conversations, or one of" in capsys.readouterr().err
    assert mindfu("forget", "--all", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"conversations": 0, "adapters": [], "data_sets_swept": True}


def test_mlflow_shows_its_pages(tmp_path: Path):
    """On this machine alone, over the home's own runs."""
    port = free_port()
    command = [sys.executable, "-m", "deployments.cli", "mlflow", "--port", str(port)]
    place = {**os.environ, "MINDFU_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, env=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                page = httpx.get(f"http://127.0.0.1:{port}/", timeout=10)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        assert "MLflow" in page.text
        assert (tmp_path / "mlflow" / "mlflow.db").exists()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
