"""Training over HTTP: our own runs, and OpenAI's fine-tuning jobs over them, from its own client, to its schema."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
import yaml

from app.runs import Progress, Run
from tests.gateway import MODEL, Whole, whole
from tests.openai_schema import validate

pytestmark = pytest.mark.integration

LINE = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole(tmp_path_factory.mktemp("training")) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def nothing_is_queued(gateway: Whole) -> None:
    await gateway.gateway.recorder.pool.execute("truncate runs cascade")


@pytest.fixture
async def http(gateway: Whole) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http(await gateway.key("owner", "train", "documents", "chat")) as client:
        yield client


@pytest.fixture
async def client(gateway: Whole) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, which checks what it parses."""
    transport = httpx2.ASGITransport(gateway.app, raise_app_exceptions=False)
    async with openai.AsyncOpenAI(
        base_url="http://localhost/v1",
        api_key=await gateway.key("owner", "train", "documents"),
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport, base_url="http://localhost"),
        _strict_response_validation=True,
    ) as made:
        yield made


async def claimed(gateway: Whole) -> Run:
    run = await gateway.gateway.runs.claim()
    assert run
    return run


async def uploaded(client: openai.AsyncOpenAI) -> str:
    data = "\n".join([json.dumps(LINE)] * 10).encode()
    return (await client.files.create(file=("chats.jsonl", data), purpose="fine-tune")).id


async def test_a_run_is_started_as_the_readme_says(http: httpx.AsyncClient):
    """Epochs and experiment are those of the run; what it learns from are the key's own conversations."""
    answer = await http.post("/train/start", json={"num_epochs": 3, "experiment_name": "my-finetune"})
    assert answer.status_code == 202, answer.text
    run = answer.json()
    assert (run["state"], run["origin"], run["tenant"]) == ("queued", "http", "owner")
    parameters = run["order"]["parameters"]
    assert (parameters["tune"]["epochs"], parameters["tune"]["experiment"]) == (3, "my-finetune")
    assert parameters["export"]["tenants"] == ["owner"]
    told = (await http.get(f"/train/runs/{run['id']}")).json()
    assert told == run | {"stages": []}
    assert (await http.post("/train/start")).status_code == 202
    assert [one["id"] for one in (await http.get("/train/runs?limit=1")).json()["data"]] != [run["id"]]


async def test_nobody_learns_from_anothers_conversations(http: httpx.AsyncClient):
    """Whatever the request says."""
    body = {"parameters": {"export": {"tenants": ["victim"], "rating": "up"}}}
    order = (await http.post("/train/start", json=body)).json()["order"]
    assert order["parameters"]["export"] == {"tenants": ["owner"], "rating": "up"}


async def test_progress_events_and_logs_are_live(gateway: Whole, http: httpx.AsyncClient):
    """As the process that works on it tells them."""
    run_id = (await http.post("/train/start", json={})).json()["id"]
    run, runs = await claimed(gateway), gateway.gateway.runs
    await runs.begin(run, "tune", "runs/tune-1", "1")
    await runs.beat(run, Progress(stage="tune", done=3, total=9, text="loss 2"))
    await runs.note(run, "It has begun.")
    log = gateway.home / "runs" / "logs" / f"{run_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("one\ntwo\n")
    told = (await http.get(f"/train/runs/{run_id}")).json()
    assert (told["state"], told["progress"]["done"], told["stages"][0]["name"]) == ("running", 3, "tune")
    events = (await http.get(f"/train/runs/{run_id}/events")).json()["data"]
    assert [event["text"] for event in events] == ["It has begun."]
    assert (await http.get(f"/train/runs/{run_id}/events?after={events[0]['id']}")).json()["data"] == []
    assert (await http.get(f"/train/runs/{run_id}/logs")).text == "one\ntwo\n"
    assert (await http.get(f"/train/runs/{run_id}/logs?tail=4")).text == "two\n"
    health = (await http.get("/health")).json()
    assert (health["training"]["run"], health["training"]["stage"]) == (run_id, "tune")
    assert not health["training"]["gpus_lent"]
    await runs.lend(run, {"main": 40})
    assert (await http.get("/health")).json()["training"]["gpus_lent"] == {"main": 40}
    await runs.lend(run, {})
    await runs.finish(run, "succeeded")
    assert (await http.get(f"/train/runs/{run_id}/logs?follow=true")).text == "one\ntwo\n"
    assert (await http.get("/health")).json()["training"] is None


async def test_a_run_is_cancelled(http: httpx.AsyncClient):
    """One that waits at once; one that has ended not again."""
    run = (await http.post("/train/start", json={})).json()
    cancelled = await http.post(f"/train/runs/{run['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    again = await http.post(f"/train/runs/{run['id']}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")


async def test_another_model_is_tuned_from_what_serves_it(
    gateway: Whole, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """params.yaml is for the model that it publishes; for another one the served file is the base."""
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({"tune": {"base": "org/big"}, "publish": {"model": "big"}, "split": {"train": 0.8}}))
    monkeypatch.setenv("MINDFU_PARAMS", str(file))
    parameters = (await http.post("/train/start", json={"model": MODEL})).json()["order"]["parameters"]
    assert (parameters["tune"]["base"], parameters["publish"]["model"]) == ("demo", MODEL)
    assert parameters["split"] == {"train": 0.8}
    unknown = await http.post("/train/start", json={"model": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"num_epochs": 0}, 400, "num_epochs"),
    ({"epochs": 1}, 400, "epochs"),
    ({"parameters": {"tunee": {}}}, 400, "tunee"),
    ({"files": ["file-none"]}, 404, "file-none"),
]


@pytest.mark.parametrize(("body", "status", "named"), WRONG)
async def test_what_cannot_be_started_is_refused_by_name(
    http: httpx.AsyncClient, body: dict[str, Any], status: int, named: str
):
    """Nothing is queued."""
    answer = await http.post("/train/start", json=body)
    assert answer.status_code == status, answer.text
    assert named in answer.text
    assert (await http.get("/train/runs")).json()["data"] == []


async def test_runs_are_for_keys_that_may_train_and_ones_own(gateway: Whole, http: httpx.AsyncClient):
    """Without the scope it is a 403; another tenant's run is none."""
    run = (await http.post("/train/start", json={})).json()
    async with gateway.http(await gateway.key("owner", "chat")) as chatting:
        for method, path in (("POST", "/train/start"), ("GET", "/train/runs"), ("GET", "/v1/fine_tuning/jobs")):
            refused = await chatting.request(method, path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    async with gateway.http(await gateway.key("thief", "train")) as thief:
        for path in (f"/train/runs/{run['id']}", f"/train/runs/{run['id']}/logs", f"/v1/fine_tuning/jobs/{run['id']}"):
            assert (await thief.get(path)).status_code == 404
        assert (await thief.post(f"/train/runs/{run['id']}/cancel")).status_code == 404
        assert (await thief.get("/train/runs")).json()["data"] == []


async def test_a_job_is_created_from_an_uploaded_file(client: openai.AsyncOpenAI):
    """With what was asked for; it is found again by its metadata, and held to the published schema."""
    file = await uploaded(client)
    job = await client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file,
        validation_file=file,
        suffix="My Shop!",
        seed=7,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 0.5}},
        },
        metadata={"team": "blue"},
    )
    validate("FineTuningJob", job.model_dump(mode="json", exclude_unset=True))
    assert (job.status, job.training_file, job.validation_file, job.seed) == ("queued", file, file, 7)
    assert job.hyperparameters.model_dump() == {"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 0.5}
    await client.fine_tuning.jobs.create(model=MODEL, training_file="conversations")
    found = await client.fine_tuning.jobs.list(metadata={"team": "blue"})
    assert [one.id for one in found.data] == [job.id]
    assert (await client.fine_tuning.jobs.retrieve(job.id)).metadata == {"team": "blue"}


async def test_jobs_come_in_pages(client: openai.AsyncOpenAI):
    """The latest first; the client walks through them by itself."""
    made = [(await client.fine_tuning.jobs.create(model=MODEL, training_file="conversations")).id for _ in range(3)]
    page = await client.fine_tuning.jobs.list(limit=2)
    validate("ListPaginatedFineTuningJobsResponse", page.model_dump(mode="json", exclude_unset=True))
    assert page.has_more
    assert [job.id async for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]


async def test_a_job_tells_what_happens_to_it(gateway: Whole, client: openai.AsyncOpenAI):
    """Validating, training with numbers, a checkpoint and a model's name at the end."""
    job = await client.fine_tuning.jobs.create(model=MODEL, training_file="conversations")
    run, runs = await claimed(gateway), gateway.gateway.runs
    await runs.begin(run, "validate", "datasets/validate-1", "1")
    await runs.beat(run, Progress(stage="validate"))
    assert (await client.fine_tuning.jobs.retrieve(job.id)).status == "validating_files"
    await runs.begin(run, "tune", "runs/tune-9", "9")
    await runs.beat(run, Progress(stage="tune"))
    assert (await client.fine_tuning.jobs.retrieve(job.id)).status == "running"
    await runs.note(run, "Step 8", kind="metrics", data={"step": 8.0, "loss": 1.5, "eval_loss": 1.25, "time": 1.0})
    await runs.note(run, "The gates blocked it.", level="warn")
    facts = {"steps": 8, "validation_loss": 1.25}
    await runs.end(run, "tune", counts={}, dropped={}, facts=facts, reused=False)
    await runs.finish(run, "succeeded", result={"name": f"{MODEL}@v1", "verdict": "blocked", "trained_tokens": 99})
    done = await client.fine_tuning.jobs.retrieve(job.id)
    validate("FineTuningJob", done.model_dump(mode="json", exclude_unset=True))
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", f"{MODEL}:v1", 99)
    events = await client.fine_tuning.jobs.list_events(job.id)
    validate("ListFineTuningJobEventsResponse", events.model_dump(mode="json", exclude_unset=True))
    assert [(event.level, event.type) for event in events.data] == [("warn", "message"), ("info", "metrics")]
    assert events.data[1].data == {"step": 8, "train_loss": 1.5, "valid_loss": 1.25}
    assert [event.id async for event in client.fine_tuning.jobs.list_events(job.id, limit=1)] == [
        event.id for event in events.data
    ]
    checkpoints = await client.fine_tuning.jobs.checkpoints.list(job.id)
    validate("ListFineTuningJobCheckpointsResponse", checkpoints.model_dump(mode="json", exclude_unset=True))
    [checkpoint] = checkpoints.data
    assert (checkpoint.fine_tuned_model_checkpoint, checkpoint.step_number) == (f"{MODEL}:v1", 8)
    assert (checkpoint.metrics.train_loss, checkpoint.metrics.full_valid_loss) == (1.5, 1.25)


async def test_a_failed_job_says_why_and_a_cancelled_one_that_it_is(gateway: Whole, client: openai.AsyncOpenAI):
    """In the fields that OpenAI has for it."""
    failed = await client.fine_tuning.jobs.create(model=MODEL, training_file="conversations")
    await gateway.gateway.runs.finish(
        await claimed(gateway), "failed", error="Found 0 conversations.", code="nothing_to_learn"
    )
    job = await client.fine_tuning.jobs.retrieve(failed.id)
    validate("FineTuningJob", job.model_dump(mode="json", exclude_unset=True))
    assert job.error
    assert (job.status, job.error.code, job.error.message) == ("failed", "nothing_to_learn", "Found 0 conversations.")
    other = await client.fine_tuning.jobs.create(model=MODEL, training_file="conversations")
    assert (await client.fine_tuning.jobs.cancel(other.id)).status == "cancelled"


async def test_preferences_are_a_method(client: openai.AsyncOpenAI):
    """With beta, which supervised tuning has not."""
    job = await client.fine_tuning.jobs.create(
        model=MODEL, training_file="conversations", method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    )
    validate("FineTuningJob", job.model_dump(mode="json", exclude_unset=True))
    assert job.method
    assert job.method.dpo
    assert job.method.dpo.hyperparameters
    assert job.method.dpo.hyperparameters.beta == 0.2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": {"type": "reinforcement"}}, "method.type"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    ({"method": {"type": "dpo", "supervised": {}}}, "method"),
    ({"hyperparameters": {"n_epochs": 2}, "method": {"type": "supervised"}}, "hyperparameters"),
    ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
    ({"unknown": 1}, "unknown"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED)
async def test_options_that_are_not_honoured_are_refused(http: httpx.AsyncClient, more: dict[str, Any], param: str):
    """By name, with OpenAI's shape of an error."""
    answer = await http.post("/v1/fine_tuning/jobs", json={"model": MODEL, "training_file": "conversations", **more})
    assert answer.status_code == 400, answer.text
    validate("ErrorResponse", answer.json())
    assert (answer.json()["error"]["param"] or "").startswith(param)
