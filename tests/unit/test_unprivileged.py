"""Giving up root in a child, seen from the child."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.unprivileged import give_up_root, nobody

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give root up")


def reads(file: Path, drop: object) -> bool:
    """Whether a child that has dropped root reads a file, and runs as nobody."""
    seen = subprocess.run(
        ["cat", "/proc/self/status", file], preexec_fn=drop, capture_output=True, text=True, check=False
    )  # type: ignore[call-overload]
    uid = next(line.split()[1] for line in seen.stdout.splitlines() if line.startswith("Uid"))
    assert int(uid) == nobody().uid
    return seen.returncode == 0


def test_a_child_reaches_its_files_through_a_closed_folder(tmp_path: Path) -> None:
    """Without a capability it would not: the folder above is root's alone, as /root is."""
    tmp_path.chmod(0o700)
    file = tmp_path / "file"
    file.write_text("content")
    assert reads(file, give_up_root(nobody(), [file]))
    assert not reads(file, give_up_root(nobody(), []))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv takes capabilities away")
def test_a_closed_folder_that_no_capability_opens_is_refused_by_name(tmp_path: Path) -> None:
    """In a container that withholds both capabilities, start-up says which folder is in the way, and what to do."""
    tmp_path.chmod(0o700)
    script = f"from app.unprivileged import *; give_up_root(nobody(), [Path({str(tmp_path / 'file')!r})])"
    poor_root = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", script]
    refused = subprocess.run(poor_root, capture_output=True, text=True, check=False)
    assert "Misconfigured" in refused.stderr
    assert "is closed to other users (mode 700)" in refused.stderr
    assert "chmod o+x" in refused.stderr
