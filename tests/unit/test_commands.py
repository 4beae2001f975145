"""The `mindfu` command as a whole: what it lists, how it ends, and that nobody waits for modules that are not used."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from rich.console import Console

from app.errors import Unavailable
from deployments import cli, cli_columns, cli_logs
from deployments.cli_repl import Repl
from tests.command import mindfu

ROOT = Path(__file__).parents[2]
NAMES = [name for commands in cli.COMMANDS.values() for name, _, _ in commands]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    """With a line of its own; without any argument it is shown as well."""
    assert mindfu("--help") == 0
    told = capsys.readouterr().out
    assert all(f" {name} " in told for name in NAMES)
    mindfu()
    assert "Usage: mindfu" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]):
    """So each can be imported, and says how it is used."""
    assert mindfu(name, "--help") == 0
    assert f"mindfu {name}" in capsys.readouterr().out


def test_every_command_speaks_to_programs():
    """By --json; but for an export, whose --format says what is written, and MLflow's own server."""
    silent = {name for name, command in every(typer.main.get_command(cli.app)) if "--json" not in options(command)}
    assert silent == {"conversations export", "mlflow"}


def every(command: Any, *before: str) -> Iterator[tuple[str, Any]]:
    """The commands beneath one, each by all of its words."""
    if isinstance(command, cli.Deferred):
        command = command.make_context(before[-1], [], resilient_parsing=True).command
    if not hasattr(command, "commands"):
        yield " ".join(before), command
    for name, one in getattr(command, "commands", {}).items():
        yield from every(one, *before, name)


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_help_imports_nothing_that_takes_long():
    """No database, no Ray, no HTTP, no settings: what a command needs is imported when it is used."""
    heavy = "{'asyncpg', 'ray', 'httpx', 'pydantic', 'numpy', 'prompt_toolkit', 'llama_cpp'}"
    code = (
        "import sys; from deployments import cli\n"
        "try: cli.main(['--help'])\n"
        f"except SystemExit: print('loaded:', sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_an_unknown_command_ends_with_two(capsys: pytest.CaptureFixture[str]):
    """And with what was probably meant."""
    assert mindfu("serv") == 2
    assert "'serve'" in capsys.readouterr().err


def test_an_unknown_option_ends_with_two(capsys: pytest.CaptureFixture[str]):
    """As every mistake in how a command is called."""
    assert mindfu("keys", "list", "--jsn") == 2
    assert "--json" in capsys.readouterr().err


@pytest.mark.parametrize("error", [Unavailable("database", "it is away"), OSError("the disk is full")])
def test_what_cannot_be_done_ends_with_one_and_its_reason(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In one line, without a stack trace."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli_logs, "with_database", fail)
    assert mindfu("stats") == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"{error}\n")


def test_a_configuration_is_checked_for_people_and_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each problem with its place; the exit status is the same."""
    file = tmp_path / "serve_config.yaml"
    file.write_text("http_options: {host: 127.0.0.1}\napplications: []\n")
    assert mindfu("check", str(file)) == 0
    assert mindfu("check", str(file), "--json") == 0
    file.write_text("http_optoins: {}\napplications: []\n")
    capsys.readouterr()
    assert mindfu("check", str(file)) == 2
    assert "http_options" in capsys.readouterr().err
    assert mindfu("check", str(file), "--json") == 2
    assert '"problems": ["http_optoins' in capsys.readouterr().out


def test_the_whole_of_a_profile_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As YAML that `serve run` takes, and as JSON."""
    (tmp_path / "base.yaml").write_text("http_options: {host: 127.0.0.1}\napplications: []\n")
    (tmp_path / "profile.yaml").write_text("extends: base.yaml\nhttp_options: {port: 1}\n")
    whole = {"http_options": {"host": "127.0.0.1", "port": 1}, "applications": []}
    assert mindfu("resolve", str(tmp_path / "profile.yaml")) == 0
    assert yaml.safe_load(capsys.readouterr().out) == whole
    assert mindfu("resolve", str(tmp_path / "profile.yaml"), "--json") == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert mindfu("resolve", str(tmp_path / "nowhere.yaml")) == 1
    assert "nowhere.yaml: it cannot be read" in capsys.readouterr().err


def test_the_documentation_names_every_command():
    """Those of the shell, and those of `mindfu chat`."""
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in text] == []
    repl: Any = Repl(None, Console(), input)  # type: ignore[arg-type]
    assert [name for name in repl.commands if f"`/{name}" not in text] == []


def test_columns_are_as_wide_as_their_widest_cell():
    """Numbers end at the same place; nothing hangs over at the end of a line."""
    assert cli_columns.columns(("A", "B"), [("xx", "1")]) == "A   B\nxx  1"
    assert cli_columns.columns(("A", "B"), [("x", "100")], right=True) == "A    B\nx  100"
    assert cli_columns.columns(("A", "B"), []) == "A  B"
