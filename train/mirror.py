"""MLflow's model registry, as a mirror of ours for people: versions with what made them, aliases of who answers.

What serves never reads it. Aliases follow at every publication and after each `mindfu promote` or `mindfu rollback`;
after one over HTTP they follow at the next of those.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from app.desired import Desired, Serving
from train import tracking

VERSION = "mindfu.version"  # the tag that ties MLflow's numbers to our names
CANDIDATE = "candidate"


class Candidate(NamedTuple):
    """What is published. folder: PEFT's adapter; verdict: of the gates."""

    model: str
    version: str
    folder: Path
    verdict: str


def publish(
    home: Path,
    candidate: Candidate,
    *,
    run_id: str | None,
    numbers: Mapping[str, float],
    files: Sequence[Path],
    tags: Mapping[str, str],
) -> str:
    """Register a version, with the alias `candidate`. Returns MLflow's number. Doing it again changes nothing.

    run_id: of the training; None makes a run. files: kept with the run.
    """
    client, model = tracking.client(home), name(candidate.model)
    if run_id is None:
        run_id = tracking.begin(home, "mindfu", candidate.version, {})
        tracking.end(home, run_id, failed=False)
    tracking.log(home, run_id, numbers, step=0, at_ms=time.time_ns() // 10**6)
    for file in files:
        client.log_artifact(run_id, str(file))
    if not _known(client, model):
        client.create_registered_model(model)
    number = _numbers(client, model).get(candidate.version)
    if number is None:
        told = {VERSION: candidate.version, "verdict": candidate.verdict, **tags}
        made = client.create_model_version(model, candidate.folder.as_uri(), run_id=run_id, tags=told)
        number = str(made.version)
    client.set_registered_model_alias(model, CANDIDATE, number)
    return number


def aliases(home: Path, desired: Desired) -> None:
    """Let `champion` and `previous` say who answers, of every model that MLflow knows."""
    client = tracking.client(home)
    for serving in desired.servings:
        if _known(client, name(serving.model)):
            _follow(client, name(serving.model), serving)


def name(model: str) -> str:
    """A served model's name in MLflow, which takes no slashes and colons."""
    return model.replace("/", "-").replace(":", "-")


def _follow(client: MlflowClient, model: str, serving: Serving) -> None:
    numbers = _numbers(client, model)
    for alias, version in (("champion", serving.champion), ("previous", serving.previous)):
        if version in numbers:
            client.set_registered_model_alias(model, alias, numbers[version])
        elif alias in client.get_registered_model(model).aliases:
            client.delete_registered_model_alias(model, alias)  # the bare base, or one that was added by hand


def _known(client: MlflowClient, model: str) -> bool:
    try:
        client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _numbers(client: MlflowClient, model: str) -> dict[str | None, str]:
    """MLflow's number of each of our versions."""
    found = client.search_model_versions(f"name = '{model}'")
    return {version.tags.get(VERSION): str(version.version) for version in found}
