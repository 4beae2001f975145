"""MLflow: where runs are told of. MLFLOW_TRACKING_URI, else SQLite and files in the home folder.

Nothing that serves imports this.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

SETTING = "MLFLOW_TRACKING_URI"  # which mlflow.set_tracking_uri sets, too: that would hold for other homes


@cache
def client(home: Path) -> MlflowClient:
    """A client of the tracking server; the embedded one's files are made if need be. Opened once: it takes a second."""
    uri = os.environ.get(SETTING)
    if uri:
        return MlflowClient(uri)
    own = home / "mlflow"
    own.mkdir(parents=True, exist_ok=True)
    return MlflowClient(f"sqlite:///{own / 'mlflow.db'}")


def begin(home: Path, experiment: str, name: str, parameters: Mapping[str, object]) -> str:
    """Open a run of an experiment, which is made if it is new. Returns the run's id."""
    tracker = client(home)
    found = tracker.get_experiment_by_name(experiment)
    files = None if os.environ.get(SETTING) else (home / "mlflow" / "artifacts").absolute().as_uri()
    experiment_id = found.experiment_id if found else tracker.create_experiment(experiment, artifact_location=files)
    run = tracker.create_run(experiment_id, run_name=name)
    tracker.log_batch(run.info.run_id, params=[Param(name, str(value)) for name, value in parameters.items()])
    return str(run.info.run_id)


def log(home: Path, run_id: str, numbers: Mapping[str, float], *, step: int, at_ms: int) -> None:
    """Numbers of one step."""
    metrics = [Metric(name, value, at_ms, step) for name, value in numbers.items()]
    client(home).log_batch(run_id, metrics=metrics)


def end(home: Path, run_id: str, *, failed: bool) -> None:
    """Close a run."""
    client(home).set_terminated(run_id, "FAILED" if failed else "FINISHED")
