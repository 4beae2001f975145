"""DVC on the learning loop's pipeline: as drawn in dvc.yaml, as docs/loop.md adds to it, and with a remote."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("dvc") is None, reason="DVC is not installed: pip install 'mindfu[dvc]'"),
]

ROOT = Path(__file__).parents[2]
OUT = "pipeline/datasets/converted"
CONVERT = f"python -m train.convert --input data=data --out {OUT}"  # of docs/loop.md


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with our pipeline, its sources by a link, and data of somebody's own."""
    folder = tmp_path / "clone"
    (folder / "data").mkdir(parents=True)
    rows = [{"instruction": f"Order {number}, please.", "output": "It is on its way."} for number in range(3)]
    (folder / "data" / "rows.json").write_text(json.dumps(rows))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("app", "train"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.gguf"))
    run(folder, "git", "init", "--quiet")
    dvc(folder, "init", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "as it was")
    return folder


def run(folder: Path, *command: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, "dvc", *arguments, environment={"DVC_NO_ANALYTICS": "1", "MINDFU_HOME": str(folder / "home")})


def test_the_pipeline_is_drawn_and_changed_parameters_are_told(clone: Path):
    """`dvc dag` has every stage behind what it reads; `dvc params diff` has the old value and the new one."""
    drawn = [line.strip() for line in dvc(clone, "dag", "--dot").splitlines() if "->" in line]
    assert {'"tune" -> "evaluate";', '"evaluate" -> "gate";', '"gate" -> "publish";'} <= set(drawn)
    params = clone / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 3", "epochs: 5"))
    told = json.loads(dvc(clone, "params", "diff", "--json"))
    assert told["params.yaml"]["tune.epochs"] == {"old": 3, "new": 5, "diff": 2}


def test_what_a_stage_made_goes_to_a_remote_and_comes_back(clone: Path, tmp_path: Path):
    """A stage runs once for the same data; its folder is pushed, lost here, and pulled as it was."""
    dvc(clone, "stage", "add", "-n", "convert", "-d", "data", "-o", OUT, CONVERT)
    assert "Running stage 'convert'" in dvc(clone, "repro", "convert")
    assert "didn't change, skipping" in dvc(clone, "repro", "convert")
    made = (clone / OUT / "data.jsonl").read_text()
    assert len(made.splitlines()) == 3
    dvc(clone, "remote", "add", "-d", "folder", str(tmp_path / "remote"))
    dvc(clone, "push")
    shutil.rmtree(clone / OUT)
    shutil.rmtree(clone / ".dvc" / "cache")
    dvc(clone, "pull", "convert")
    assert (clone / OUT / "data.jsonl").read_text() == made
