"""The extras of pyproject.toml and their lock. `make extras` installs them."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.extras import PROMISES, ROOT, TORCH, UV, sync

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))


def planned(folder: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder / "none")}
    command = [*sync(*extras), "--dry-run", "--offline"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_extra_promises_something():
    """And `make extras` imports it."""
    assert set(PROJECT["project"]["optional-dependencies"]) == set(PROMISES)


@pytest.mark.parametrize("extra", PROMISES)
def test_an_extra_is_in_the_lock(extra: str):
    """Its own packages, and all that they need."""
    command = [UV, "export", "--frozen", "--offline", "--no-dev", "--no-emit-project", "--extra", extra]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = PROJECT["project"]["optional-dependencies"][extra]
    names = {re.split(r"[\[<>=;~ ]", line)[0] for line in wanted} - {"mindfu"}
    assert [name for name in names if not re.search(rf"^{name}==", done.stdout, re.MULTILINE)] == []


@pytest.mark.parametrize("extras", [("cpu", "cuda"), ("cpu", "vllm"), ("awq", "train"), ("awq", "vllm")])
def test_extras_that_exclude_each_other_are_refused_together(tmp_path: Path, extras: tuple[str, str]):
    """With both names, before anything is installed."""
    done = planned(tmp_path, *extras)
    assert done.returncode == 2
    assert all(f"`{extra}`" in done.stderr for extra in extras)


def test_vllm_changes_nobody_elses_versions():
    """What is installed without it has one version of everything for each Python and system, and no CUDA."""
    command = [UV, "export", "--frozen", "--offline", "--no-dev", "--no-hashes", "--no-annotate", "--no-emit-project"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "numpy==2.3" not in done.stdout  # which vLLM wants
    assert not re.search(r"^(vllm|nvidia|cuda|triton)", done.stdout, re.MULTILINE)


def test_all_of_the_lock_comes_from_the_public_index():
    """No mirror, no folder of whoever locked last."""
    sources = {str(package["source"]) for package in LOCK["package"] if package["name"] != "mindfu"}
    assert sources == {"{'registry': 'https://pypi.org/simple'}"}
    files = [file for package in LOCK["package"] for file in [*package.get("wheels", []), package.get("sdist", {})]]
    assert {file["url"].split("/")[2] for file in files if file} == {"files.pythonhosted.org"}


def test_pytorch_is_the_same_everywhere():
    """In the dependencies, what the lock is told of it, the Makefile, and the extra that tells its CUDA."""
    assert TORCH in PROJECT["project"]["dependencies"]
    assert f"TORCH := {TORCH}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    told = PROJECT["tool"]["uv"]["dependency-metadata"]
    assert next(one for one in told if one["name"] == "torch")["version"] == TORCH.partition("==")[2]
