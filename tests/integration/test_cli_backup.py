"""`mindfu backup` and `mindfu restore`, as they are typed."""

import json
from pathlib import Path

import pytest

from tests.command import mindfu

pytestmark = pytest.mark.integration


def test_a_home_goes_into_an_archive_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Without a server; what is said can be read by programs, and a second restore is refused."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "home"))
    assert mindfu("backup", str(tmp_path / "backups"), "--keep", "2", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["counts"]["documents"], said["incomplete"], said["deleted"]) == (0, [], [])
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "new"))
    assert mindfu("restore", said["archive"]) == 0
    assert "as they were on" in capsys.readouterr().out
    assert mindfu("restore", said["archive"]) == 1
    assert "a restore never writes over data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("backup", "x.tar", "--keep", "2"), 1, "--keep goes with a folder"),
        (("backup", "x", "--keep", "0"), 2, "greater than or equal to 1"),
        (("restore", "no-such.tar"), 1, "There is nothing at no-such.tar"),
        (("backup", "nothing://bucket"), 1, "nothing://bucket"),
    ],
)
def test_what_cannot_be_is_told(
    arguments: tuple[str, ...], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """With an exit status that scripts see."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path))
    assert mindfu(*arguments) == status
    assert said in capsys.readouterr().err
