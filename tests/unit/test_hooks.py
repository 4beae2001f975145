""".pre-commit-config.yaml: what is in the repository passes it, and what must never get there does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ".pre-commit-config.yaml"
BIN = Path(sys.executable).parent
AWS = "AKIA" + "IOSFODNN7EXAMPLE"  # in two parts, so that this file is none of those that are refused


def hooks(folder: Path, cache: Path, *skipped: str) -> subprocess.CompletedProcess[str]:
    """All but those skipped, over all files of a repository."""
    environment = {**os.environ, "PRE_COMMIT_HOME": str(cache), "SKIP": ",".join(skipped)}
    command = [BIN / "pre-commit", "run", "--all-files", "--color=never"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)


@pytest.mark.skipif(not (ROOT / ".git").exists() or not (ROOT / ".venv").exists(), reason="no clone with its .venv")
def test_the_repository_passes(tmp_path: Path):
    """YAML, TOML and secrets; `make check`, which runs before the tests, is the same for format, lint and types."""
    found = hooks(ROOT, tmp_path, "ruff-format", "ruff", "mypy")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("hook", "name", "text"),
    [
        ("format", "one.py", "x = { 1:2 }\n"),
        ("lint", "one.py", '"""One."""\n\nimport os\n'),
        ("YAML", "one.yaml", "a: [1\n"),
        ("TOML", "one.toml", "a = [1\n"),
        ("secrets", "one.md", f"key: {AWS}\n"),
    ],
)
def test_what_is_wrong_is_refused_by_its_own_hook(hook: str, name: str, text: str, tmp_path: Path):
    """In a repository that holds nothing else; the types are of the whole, which stands nowhere else."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(BIN)
    (folder / ".gitignore").write_text(".venv\n")
    for shared in (CONFIG, "pyproject.toml"):
        shutil.copy(ROOT / shared, folder / shared)
    (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    found = hooks(folder, tmp_path / "cache", "mypy")
    failed = [line.partition("...")[0] for line in found.stdout.splitlines() if line.endswith("Failed")]
    assert failed == [hook], found.stdout + found.stderr
