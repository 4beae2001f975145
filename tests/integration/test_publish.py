"""From a tuned adapter to a version that can be promoted, and to the formats that others serve."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import peft
import pytest
import torch
import transformers

from app.errors import InvalidRequest, NotPromoted
from app.messages import Message
from app.postgres_home import PostgresHome
from app.promotion import promote, rollback
from app.registry import Registry
from train import base, formats, lines, mirror, publish, stages, tracking
from train.gate import VERDICT, Verdict
from train.lines import Line
from train.parity import Parity
from train.results import Judged, Regression, Results
from train.scores import Interval

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # inside PEFT
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # inside MLflow
]


def finish(folder: Path, stage: str, inputs: dict[str, Path] | None = None, **facts: Any) -> Path:
    """Make a folder that of a finished stage."""
    read = {name: stages.Input(content=stages.content(path)) for name, path in (inputs or {}).items()}
    manifest = stages.Manifest(
        stage=stage, key=f"{folder.name:0>16}", content=stages.content(folder), inputs=read, parameters={"rank": 8},
        code="c0de", commit="abc", outputs={}, facts=facts, created_at=datetime(2026, 11, 21, tzinfo=UTC), seconds=1.0,
    )  # fmt: skip
    (folder / stages.MANIFEST).write_text(manifest.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights on the demo model, as PEFT saves it."""
    home = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base.find("demo", home).folder)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.03)
    tuned.save_pretrained(home / "adapter")
    return home / "adapter"


class Made:
    """The folders of a run up to its gate."""

    def __init__(self, home: Path, adapter: Path, verdict: str = "passed") -> None:
        runs = home / "runs" / verdict
        said = (Message(role="user", content="?"), Message(role="assistant", content="!"))
        data, tuned, evaluation, gate = (runs / name for name in ("split", "tune", "evaluate", "gate"))
        for folder in (data, tuned, evaluation, gate):
            folder.mkdir(parents=True)
        told = {"id": "x", "conversation": "conversation-1", "turns": ["turn-1", "turn-2"]}
        lines.save(data / "train.jsonl", [lines.dump(Line(said, (0, 1), (), told))])
        finish(data, "split")
        (tuned / "adapter").mkdir()
        for file in adapter.iterdir():
            (tuned / "adapter" / file.name).write_bytes(file.read_bytes())
        content = base.find("demo", home).content
        finish(tuned, "tune", {"data": data}, kind="adapter", base="demo", base_content=content)
        written = {"tuned": tuned}
        formats_folder = stages.run(
            formats.STAGE, inputs=written, parameters=formats.Formats(formats=("gguf-lora",)), home=home
        )
        (evaluation / "adapter.gguf").write_bytes((formats_folder / "adapter.gguf").read_bytes())
        (evaluation / "results.json").write_text(results().model_dump_json())
        for name in ("report.md", "report.html"):
            (evaluation / name).write_text("fine")
        finish(evaluation, "evaluate", {"tuned": tuned, "data": data})
        reasons = () if verdict == "passed" else ("the loss rises",)
        (gate / VERDICT).write_text(Verdict(verdict=verdict, reasons=reasons, checks=()).model_dump_json())
        finish(gate, "gate", {"evaluation": evaluation})
        self.home = home
        self.inputs = {"data": data, "tuned": tuned, "evaluation": evaluation, "gate": gate}

    def publish(self, **parameters: Any) -> stages.Manifest:
        folder = stages.run(
            publish.STAGE, inputs=self.inputs, parameters=publish.Publication(**parameters), home=self.home
        )
        return stages.manifest(folder)


def results() -> Results:
    gain = Interval(0.2, 0.1, 0.3, 30)
    judged = Judged(conversations=30, answers=30, tokens=300, base_loss=1.0, tuned_loss=0.8, gain=gain)
    parity = Parity(tokens=9, served=0.2, trained=0.2, mean_difference=0.01, highest_difference=0.1, correlation=0.99)
    regression = Regression(items=3, passed=2, broken=(), mended=())
    return Results(
        file="demo.gguf", base="b", adapter="a", sets={"test": judged}, regression=regression, parity=parity,
        base_speed=None, tuned_speed=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the tests that need MLflow, whose database takes seconds to make."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def postgres(postgres_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own PostgreSQL, as the environment names it."""
    monkeypatch.setenv("MINDFU_POSTGRES_URL", f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_what_passed_can_be_promoted_and_made_again(home: Path, adapter: Path, pool: asyncpg.Pool, postgres: None):
    """Registered with the verdict; MLflow knows data, turns, parameters, code and base; aliases follow who answers."""
    del postgres, pool
    made = Made(home, adapter)
    told = made.publish(version="v1")
    assert (told.facts["name"], told.facts["verdict"]) == ("mindfu-demo@v1", "passed")
    assert told.counts == {"turns": 2, "conversations": 1}
    client = tracking.client(home)
    version = client.get_model_version_by_alias("mindfu-demo", "candidate")
    assert version.tags["data"] == stages.manifest(made.inputs["data"]).content
    assert (version.tags["code"], version.tags["base"], version.tags["verdict"]) == ("c0de", "demo", "passed")
    run = client.get_run(version.run_id)
    assert run.data.metrics["evaluate.test.gain"] == pytest.approx(0.2)
    kept = {file.path for file in client.list_artifacts(version.run_id)}
    assert kept == {"provenance.json", "report.html", "report.md", "verdict.json"}
    assert (home / "adapters" / "mindfu-demo" / "v1" / "adapter_config.json").exists()
    assert "will answer for mindfu-demo as soon as a server runs" in mindfu(home, "promote", "mindfu-demo@v1")
    assert names(client) == {"candidate": "v1", "champion": "v1"}
    asyncio.run(back(home))
    assert names(client) == {"candidate": "v1", "previous": "v1"}
    made.publish(version="v1")  # and once more, which changes nothing
    assert len(client.search_model_versions("name = 'mindfu-demo'")) == 1


def names(client: Any) -> dict[str, str]:
    """MLflow's aliases, with our names of what they stand for."""
    aliases = client.get_registered_model("mindfu-demo").aliases
    versions = {alias: client.get_model_version("mindfu-demo", number) for alias, number in aliases.items()}
    return {alias: version.tags[mirror.VERSION] for alias, version in versions.items()}


async def back(home: Path) -> None:
    async with publish.registry_of(home) as registry:
        await rollback(registry, "mindfu-demo")
        mirror.aliases(home, await registry.desired())


def mindfu(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "deployments.cli", *arguments]
    environment = {**os.environ, "MINDFU_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_what_was_blocked_is_published_and_not_promoted(
    home: Path, adapter: Path, pool: asyncpg.Pool, postgres: None
):
    """It can be asked for by its name; to answer for the model it has to be forced."""
    del postgres
    registry = Registry(pool, home)
    told = await asyncio.to_thread(lambda: Made(home, adapter, "blocked").publish())
    assert told.facts["name"] == "mindfu-demo@20261121-00000000"
    (known,) = (await registry.desired()).adapters
    assert (known.verdict, known.reasons) == ("blocked", ("the loss rises",))
    with pytest.raises(NotPromoted, match="the loss rises"):
        await promote(registry, "mindfu-demo", known.version)
    details = (await registry.adapter("mindfu-demo", known.version)).details
    assert details["conversations"] == ["conversation-1"]


def test_parts_of_different_runs_are_not_published_together(tmp_path: Path, adapter: Path, postgres: None):
    """An evaluation of another adapter would vouch for this one."""
    del postgres
    made = Made(tmp_path, adapter)
    (made.inputs["tuned"] / "adapter" / "README.md").write_text("changed")
    (made.inputs["tuned"] / stages.MANIFEST).unlink()
    finish(made.inputs["tuned"], "tune", {"data": made.inputs["data"]}, kind="adapter", base="demo")
    with pytest.raises(InvalidRequest, match="was made of another 'tuned'"):
        made.publish()


def test_every_format_is_compared_before_it_is_done(tmp_path: Path, adapter: Path):
    """All but AWQ, with how far each is from PyTorch."""
    tuned = tmp_path / "runs" / "tune"
    (tuned / "adapter").mkdir(parents=True)
    for file in adapter.iterdir():
        (tuned / "adapter" / file.name).write_bytes(file.read_bytes())
    finish(tuned, "tune", kind="adapter", base="demo")
    wanted = ("gguf-lora", "gguf", "Q8_0", "Q5_K_M", "Q4_K_M", "safetensors", "vllm", "peft")
    parameters = formats.Formats(formats=wanted, threads=1)
    folder = stages.run(formats.STAGE, inputs={"tuned": tuned}, parameters=parameters, home=tmp_path)
    apart = stages.manifest(folder).facts["mean_difference"]
    assert isinstance(apart, dict)
    assert list(apart) == list(wanted)
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert "tool-call-parser: hermes" in (folder / "vllm" / "vllm.yaml").read_text()
    assert files >= {"adapter.gguf", "merged.gguf", "merged-Q4_K_M.gguf", "merged", "adapter", "manifest.json"}
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert sum(weight.numel() for weight in whole.parameters()) > 2_000_000
