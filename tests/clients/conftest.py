"""A running server with the scripted model, and the clients where `python -m tests.clients.install` put them."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.acceptance.conftest import Server, running
from tests.clients.install import FOLDER
from tests.clients.scripted import scripted_model

SECRET = "swordfish"
CLIENT_S = 300  # an agent of 40,000 tokens on two cores that others use, too


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A window of 65,536 tokens: an agent's first prompt has up to 40,000."""
    folder = tmp_path_factory.mktemp("clients")
    model = scripted_model(folder / "script.gguf")
    with running(folder, model=str(model), window=65536, slots=2) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder for an agent to work in."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "secret.txt").write_text(f"The secret word is {SECRET}.\n")
    return folder


def run(command: list[str | Path], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """What a client printed. Skips where it is not installed."""
    program = Path(command[0])
    if not program.exists():
        pytest.skip(f"{program.relative_to(FOLDER)} is not installed: python -m tests.clients.install")
    clean = {"PATH": os.environ["PATH"], "HOME": str(cwd.parent), "NO_PROXY": "127.0.0.1,localhost"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
