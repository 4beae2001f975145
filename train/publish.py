"""Stage `publish`: an evaluated adapter becomes a version that can be asked for, promoted, and made again.

    python -m train.publish --input data=… --input tuned=… --input evaluation=… --input gate=… --set model=mindfu-demo

The adapter is copied beneath <home>/adapters, registered for serving with the gates' verdict (app/registry.py), and
told to MLflow with all that made it: hash of the data, ids of turns and conversations, parameters, code, base. MLflow's
aliases follow the registry (train/mirror.py). What this does not do: let it answer. `mindfu promote` does.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import Field, JsonValue

from app.desired import Desired
from app.errors import InvalidRequest
from app.messages import Strict
from app.postgres import open_pool
from app.registry import Registry, check_version, digest, stored_path
from app.settings import LLMSettings, Secrets
from train import lines, mirror, stages
from train.evaluate import ADAPTER
from train.gate import VERDICT, Verdict, read_results
from train.results import Results
from train.stages import Manifest, Outcome, Stage, Work

PROVENANCE = "provenance.json"


class Publication(Strict):
    """The parameters of the stage `publish`."""

    model: str = Field(LLMSettings().name, min_length=1)  # the served name of the base, `llm.name`
    version: str | None = None  # None: the day of the training and the beginning of its key


def check(inputs: Mapping[str, Path], parameters: Publication) -> None:
    """Raises where the parts do not belong to each other."""
    if parameters.version is not None:
        check_version(parameters.version)
    evaluated, judged = stages.manifest(inputs["evaluation"]), stages.manifest(inputs["gate"])
    _same(inputs, evaluated, "evaluation", "tuned")
    _same(inputs, judged, "gate", "evaluation")
    _same(inputs, stages.manifest(inputs["tuned"]), "tuned", "data")


def given(parameters: Publication, home: Path) -> Mapping[str, str]:
    """What the registry knows: whoever starts with another database publishes again."""
    return {"registry": asyncio.run(_known(parameters.model, home))}


def make(work: Work[Publication]) -> Outcome:
    """Copy, register, tell."""
    parameters, tuned = work.parameters, stages.manifest(work.inputs["tuned"])
    verdict = Verdict.model_validate_json((work.inputs["gate"] / VERDICT).read_bytes())
    results = read_results(work.inputs["evaluation"])
    version = parameters.version or f"{tuned.created_at:%Y%m%d}-{tuned.key[:8]}"
    kept = _kept(work, version)
    told = provenance(work.inputs, tuned)
    stages.write(work.folder / PROVENANCE, told.model_dump_json(indent=1) + "\n")
    desired = asyncio.run(_register(work.home, parameters.model, version, kept, verdict, told))
    numbers = _numbers(results)
    number = mirror.publish(
        work.home,
        mirror.Candidate(parameters.model, version, kept.parent / version, verdict.verdict),
        run_id=str(tuned.facts["mlflow_run"]) if "mlflow_run" in tuned.facts else None,
        numbers=numbers,
        files=(work.folder / PROVENANCE, *sorted(work.inputs["evaluation"].glob("report.*")),
               *sorted(work.inputs["evaluation"].glob("plot-*.svg")), work.inputs["gate"] / VERDICT),
        tags={"data": told.data, "code": told.code, "base": told.base},
    )  # fmt: skip
    mirror.aliases(work.home, desired)
    facts: dict[str, JsonValue] = {
        "name": f"{parameters.model}@{version}",
        "verdict": verdict.verdict,
        "path": stored_path(kept, work.home),
        "mlflow_version": number,
    }
    return Outcome({"turns": len(told.turns), "conversations": len(told.conversations)}, facts=facts)


class Provenance(Strict):
    """Everything that is needed to make an adapter again, and to know whose words are in it. Hashes but for names."""

    data: str
    turns: tuple[str, ...]
    conversations: tuple[str, ...]
    parameters: dict[str, JsonValue]  # of the training
    code: str
    commit: str | None
    base: str  # its name
    base_content: str
    tune: str  # the stages' keys
    evaluation: str


def provenance(inputs: Mapping[str, Path], tuned: Manifest) -> Provenance:
    """Of the adapter that the stages made."""
    data = inputs["data"]
    turns: set[str] = set()
    conversations: set[str] = set()
    for metadata in _metadata(data):
        listed = metadata.get("turns")
        turns |= {str(turn) for turn in listed} if isinstance(listed, list) else set()
        conversations |= {str(metadata["conversation"])} if "conversation" in metadata else set()
    return Provenance(
        data=stages.manifest(data).content,
        turns=tuple(sorted(turns)),
        conversations=tuple(sorted(conversations)),
        parameters=tuned.parameters,
        code=tuned.code,
        commit=tuned.commit,
        base=str(tuned.facts["base"]),
        base_content=str(tuned.facts["base_content"]),
        tune=tuned.key,
        evaluation=stages.manifest(inputs["evaluation"]).key,
    )


def _metadata(data: Path) -> Iterable[Mapping[str, JsonValue]]:
    """Of what was trained on."""
    for part in ("train", "validation"):
        file = data / f"{part}.jsonl"
        if file.exists():
            yield from (line.metadata for line in lines.read(file))
        yield from (pair.metadata for pair in lines.read_preferences(data / f"preferences-{part}.jsonl"))


def _same(inputs: Mapping[str, Path], of: Manifest, name: str, part: str) -> None:
    """That a stage read the very thing that is given here."""
    read = of.inputs.get(part)
    if read is None or read.content != stages.content(inputs[part]):
        message = f"{inputs[name]} was made of another '{part}' than {inputs[part]}: they cannot be published together."
        raise InvalidRequest(message, part)


def _kept(work: Work[Publication], version: str) -> Path:
    """The adapter beneath the home folder: the GGUF that is served, and beside it what PEFT reads."""
    kept = work.home / "adapters" / work.parameters.model / f"{version}.gguf"
    made = work.inputs["evaluation"] / ADAPTER
    if kept.exists() and digest(kept) != digest(made):
        message = f"{kept} is there already with another content. A version is never used twice: choose another one."
        raise InvalidRequest(message, "version")
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work.inputs["tuned"] / "adapter", kept.parent / version, dirs_exist_ok=True)
    part = kept.with_suffix(".part")
    shutil.copyfile(made, part)
    part.replace(kept)
    return kept


async def _register(home: Path, model: str, version: str, file: Path, verdict: Verdict, details: Provenance) -> Desired:
    async with registry_of(home) as registry:
        await registry.add(model, version, file, details=details.model_dump(mode="json"))
        await registry.judge(model, version, verdict.verdict, verdict.reasons)
        return await registry.desired()


async def _known(model: str, home: Path) -> str:
    async with registry_of(home) as registry:
        return ",".join((await registry.desired()).versions(model))


@asynccontextmanager
async def registry_of(home: Path) -> AsyncIterator[Registry]:
    """The registry of the environment's PostgreSQL, or of the home's own."""
    url = Secrets.from_env().postgres_url
    pool = await open_pool(url.get_secret_value() if url else None, home)
    try:
        yield Registry(pool, home)
    finally:
        await pool.close()


def _numbers(results: Results) -> dict[str, float]:
    """What MLflow compares candidates by."""
    told = {"evaluate.broken": float(len(results.regression.broken))}
    for name, judged in results.sets.items():
        told |= {
            f"evaluate.{name}.base_loss": judged.base_loss,
            f"evaluate.{name}.tuned_loss": judged.tuned_loss,
            f"evaluate.{name}.gain": judged.gain.mean,
            **{f"evaluate.{name}.{metric}": value.tuned for metric, value in judged.metrics.items()},
        }
        if judged.preference and judged.preference.score:
            told[f"evaluate.{name}.preference"] = judged.preference.score.mean
    if results.parity:
        told["evaluate.parity"] = results.parity.mean_difference
    return told


STAGE = Stage(
    name="publish",
    does="Register an evaluated adapter for serving, and tell MLflow what made it.",
    place="runs",
    inputs=("data", "tuned", "evaluation", "gate"),
    parameters=Publication,
    make=make,
    check=check,
    given=given,
)

if __name__ == "__main__":
    stages.main(STAGE)
