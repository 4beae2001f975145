"""The `mindfu` command. `mindfu --help` lists what it can do, docs/cli.md tells it with examples.

One line here for each command: its module is imported when the command is used, so that `--help` waits for none.
A command is a function with a typed signature, whose docstring is its help, or a `typer.Typer` with several of them.
It returns its exit status (None: 0); a MindFuError or an OSError that it raises is printed, and the status is 1.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from app.errors import MindFuError

COMMANDS = {
    "Talk": (
        ("chat", "cli_chat:chat", "talk to a server, with a history on it and commands"),
        ("ask", "cli_ask:ask", "ask one question, from a terminal or a script"),
        ("search", "cli_ask:search", "find passages of documents"),
        ("conversations", "cli_conversations:app", "list, show and export conversations"),
        ("models", "cli_models:models", "what a server may be switched to"),
    ),
    "Serve": (
        ("serve", "cli_serve:serve", "start everything and answer until Ctrl-C"),
        ("doctor", "cli_doctor:doctor", "look at this machine, and say what to do where something is wrong"),
        ("check", "cli_serve:check", "say what is wrong with configurations"),
        ("resolve", "cli_serve:resolve", "print the whole of a profile, for `serve run` and `serve deploy`"),
        ("bench", "cli_bench:bench", "compare models on this machine: speed, time to first token, memory"),
        ("keys", "cli_keys:app", "create, list and revoke API keys"),
        ("stats", "cli_logs:stats", "how much there is, and what it takes"),
        ("backup", "cli_backup:backup", "put everything into one archive: a folder, or a URL like s3://bucket/x"),
        ("restore", "cli_backup:restore", "bring a backup back, into a home that is empty"),
    ),
    "Documents and logs": (
        ("ingest", "cli_ingest:ingest", "take in files, folders and URLs; again: what changed"),
        ("ingest-logs", "cli_logs:ingest_logs", "import conversations: Mistral Vibe, OpenAI, ShareGPT and our own"),
        ("copy", "cli_logs:copy", "copy new and changed files of a folder: paths, or URLs like s3://bucket/logs"),
    ),
    "Learn": (
        ("train", "cli_train:train", "learn: from conversations to an adapter that can be promoted"),
        ("runs", "cli_train:runs", "list, show and cancel training runs"),
        ("mlflow", "cli_train:mlflow", "show MLflow's pages on port 5000"),
        ("forget", "cli_forget:forget", "forget conversations, and let what learnt from them answer no more"),
        ("plan", "cli_plan:plan", "whether tuning a model fits into a GPU's memory"),
        ("adapters", "cli_adapters:app", "list, add and retire adapters"),
        ("promote", "cli_adapters:promote_adapter", "let an adapter answer for its model's name, or try it out"),
        ("rollback", "cli_adapters:roll_back", "end a trial, or let the adapter before answer again"),
    ),
}  # fmt: skip


class Deferred(TyperCommand):
    """A command whose module is imported when it is used. where: module:name, below this package."""

    def __init__(self, name: str, where: str, text: str, panel: str) -> None:
        super().__init__(name, help=text, rich_help_panel=panel)
        self._where = where

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """The real command's, which is then what is run."""
        module, _, name = self._where.partition(":")
        found = getattr(import_module(f"deployments.{module}"), name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command()(function)
        return typer.main.get_command(found).make_context(*arguments, **named)


class Commands(TyperGroup):
    """All commands."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for panel, commands in COMMANDS.items():
            for name, where, text in commands:
                self.add_command(Deferred(name, where, text, panel))

    def invoke(self, ctx: Any) -> Any:
        """Run a command. What it returns is the exit status."""
        try:
            status = super().invoke(ctx)
        except BrokenPipeError:  # a reader like `head` has enough: typer's business
            raise
        except (MindFuError, OSError) as error:
            print(error, file=sys.stderr)
            status = 1
        raise typer.Exit(status or 0)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def mindfu() -> None:
    """A self-hosted LLM that learns from your work: serve it, talk to it, feed it, let it learn."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit. arguments: None takes the process's."""
    app(arguments, prog_name="mindfu")


if __name__ == "__main__":
    main()
