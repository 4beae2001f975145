"""A run of the learning loop, asked for over HTTP, worked on as a job of the Ray that serves, while it serves."""

import contextlib
import json
import time

import openai
import psutil
import pytest
from openai.types.fine_tuning import FineTuningJob

from app.postgres_home import PostgresHome
from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration

RUN_S = 400
QUICK = {
    "validate": {"redact": False},
    "tune": {"window": 128, "max_steps": 2, "batch": 2, "accumulation": 1, "rank": 4, "quantise": False},
    "evaluate": {"window": 256, "answers": 2, "parity": 1, "most": 4, "max_tokens": 16},
}


def shop(count: int = 60) -> bytes:
    """Conversations of a shop whose answers are learnt easily."""
    said = [
        [
            {"role": "user", "content": f"Where is my order {n * 37}, of the {n}th?"},
            {"role": "assistant", "content": f"Order {n * 37} is on its way."},
        ]
        for n in range(count)
    ]
    return "\n".join(json.dumps({"messages": messages}) for messages in said).encode()


def ended(client: openai.OpenAI, run_id: str) -> FineTuningJob:
    """The job, once nothing more happens to it."""
    deadline = time.monotonic() + RUN_S
    while (job := client.fine_tuning.jobs.retrieve(run_id)).status not in {"succeeded", "failed", "cancelled"}:
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    return job


def test_a_run_ends_inside_the_server(server: Server):
    """As a job of its Ray, step by step; the stock client reads what happened."""
    with server.openai() as client, server.http() as http:
        file = client.files.create(file=("shop.jsonl", shop()), purpose="fine-tune")
        order = {"files": [file.id], "parameters": QUICK, "until": "split"}
        run_id = http.post("/train/start", json=order).raise_for_status().json()["id"]
        job = ended(client, run_id)
        assert job.status == "succeeded", (job.error, http.get(f"/train/runs/{run_id}/logs").text)
        stages = http.get(f"/train/runs/{run_id}").json()["stages"]
        assert [stage["name"] for stage in stages] == ["convert", "validate", "split"]
        assert "The run has succeeded." in [event.message for event in client.fine_tuning.jobs.list_events(run_id)]


@pytest.mark.training
def test_a_job_of_the_stock_client_ends_with_a_model_that_answers(server: Server):
    """From an uploaded file; progress is told while it runs, requests are answered, the gates have their say."""
    ask = {"model": "mindfu-demo", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
    with server.openai() as client, server.http() as http:
        file = client.files.create(file=("shop.jsonl", shop()), purpose="fine-tune")
        started = http.post("/train/start", json={"files": [file.id], "experiment_name": "shop", "parameters": QUICK})
        assert started.status_code == 202, started.text
        run_id = started.json()["id"]
        seen: set[str] = set()
        deadline = time.monotonic() + RUN_S
        while (job := client.fine_tuning.jobs.retrieve(run_id)).status not in {"succeeded", "failed", "cancelled"}:
            assert time.monotonic() < deadline, http.get(f"/train/runs/{run_id}/logs").text
            health = http.get("/health")
            assert health.json()["parts"]["trainer"] == "ok"
            if training := health.json()["training"]:
                seen.add(str(training["stage"]))
            assert http.post("/v1/chat/completions", json=ask).status_code == 200
            time.sleep(0.5)
        assert job.status == "succeeded", (job.error, http.get(f"/train/runs/{run_id}/logs").text)
        assert job.fine_tuned_model
        assert "tune" in seen
        told = http.get(f"/train/runs/{run_id}").json()
        assert [stage["name"] for stage in told["stages"]] == [
            "convert", "validate", "split", "tune", "evaluate", "gate", "publish",
        ]  # fmt: skip
        assert told["result"]["verdict"] == "blocked"  # by six held-out conversations, if by nothing else
        answer = http.post("/v1/chat/completions", json=ask | {"model": job.fine_tuned_model})
        assert answer.status_code == 200, answer.text
        [checkpoint] = client.fine_tuning.jobs.checkpoints.list(run_id).data
        assert checkpoint.step_number == 2
        version = job.fine_tuned_model.partition(":")[2]
        refused = http.post("/models/mindfu-demo/promote", json={"version": version})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_promoted")


def test_a_job_is_cancelled_while_it_runs(server: Server):
    """Its Ray job ends, and the run says so."""
    with server.openai() as client:
        file = client.files.create(file=("shop.jsonl", shop()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="mindfu-demo", training_file=file.id, hyperparameters={"n_epochs": 50}
        )
        deadline = time.monotonic() + RUN_S
        while client.fine_tuning.jobs.retrieve(job.id).status == "queued":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        client.fine_tuning.jobs.cancel(job.id)
        while (now := client.fine_tuning.jobs.retrieve(job.id)).status != "cancelled":
            assert now.status in {"running", "validating_files"}, now
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.training
def test_a_run_outlives_its_process_the_trainer_and_postgresql(server: Server):
    """All three killed at once, in the middle of a stage: another attempt goes on with it, and answers were given."""
    ask = {"model": "mindfu-demo", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
    with server.openai() as client, server.http() as http:
        file = client.files.create(file=("shop.jsonl", shop(2000)), purpose="fine-tune")
        order = {"files": [file.id], "until": "split"}
        run_id = http.post("/train/start", json=order).raise_for_status().json()["id"]
        deadline = time.monotonic() + RUN_S
        while (http.get(f"/train/runs/{run_id}").json()["progress"] or {}).get("stage") != "validate":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        postmaster = PostgresHome(server.home).postmaster()
        assert postmaster
        for process in (working(server, run_id), server.replica("Trainer"), psutil.Process(postmaster)):
            process.kill()
        state = "running"
        while state in {"queued", "running"}:
            assert time.monotonic() < deadline, http.get(f"/train/runs/{run_id}/logs").text
            assert http.post("/v1/chat/completions", json=ask).status_code == 200
            if (answer := http.get(f"/train/runs/{run_id}")).status_code != 503:  # PostgreSQL is away
                state = answer.raise_for_status().json()["state"]
        assert state == "succeeded", http.get(f"/train/runs/{run_id}/logs").text
        told = [event["text"] for event in http.get(f"/train/runs/{run_id}/events").json()["data"]]
        assert "Attempt 2: it goes on where the one before ended." in told
        assert sum(text.startswith("convert:") for text in told) == 1  # what was done is not done again


def working(server: Server, run_id: str) -> psutil.Process:
    """The process that works on a run."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[1:4] == ["-m", "train.run", run_id]:
                return process
    raise AssertionError(run_id)
