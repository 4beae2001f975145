"""MLflow: what a run tells lies in its home, and homes of one process do not mix."""

import os
from pathlib import Path

import pytest

from train import tracking

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # inside MLflow
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # its SQLite
]


def test_each_home_keeps_its_own_runs_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the folder where the command was started, nor in the environment."""
    monkeypatch.delenv(tracking.SETTING, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("hi")
    for name in ("one", "other"):
        home = tmp_path / name
        run = tracking.begin(home, "coffee", "tune", {"recipe.rank": 16})
        tracking.log(home, run, {"loss": 1.5, "learning_rate": 1e-4}, step=10, at_ms=1)
        tracking.client(home).log_artifact(run, "note.txt")
        tracking.end(home, run, failed=name == "other")
        assert [file.name for file in home.rglob("note.txt")] == ["note.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.txt", "one", "other"]
    assert tracking.SETTING not in os.environ
    client = tracking.client(tmp_path / "other")
    [run] = client.search_runs([client.get_experiment_by_name("coffee").experiment_id])
    assert run.data.params == {"recipe.rank": "16"}
    assert run.data.metrics == {"loss": 1.5, "learning_rate": 1e-4}
    assert run.info.status == "FAILED"
