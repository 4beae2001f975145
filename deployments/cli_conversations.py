"""`mindfu conversations`: what a server kept of what was said: listed, shown, exported."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.client import Format
from app.whole_file import whole_file
from deployments.cli_client import TIMEOUT_S, Timeout, Url, connected, harmless
from deployments.cli_columns import columns
from deployments.cli_options import Json

HEAD = ("ID", "LATEST", "TURNS", "MODEL", "TITLE")
TITLE_CHARS = 60
Rated = Literal["up", "down", "none"]
Since = Annotated[str | None, typer.Option("--from", metavar="DATE", help="Of the latest turn, like 2026-11-21.")]
Before = Annotated[str | None, typer.Option("--to", metavar="DATE")]
OfModel = Annotated[str | None, typer.Option(help="That answered any turn.")]
Rating = Annotated[Rated | None, typer.Option(help="Of any turn.")]
Words = Annotated[str | None, typer.Option("--words", metavar="TEXT", help="That were said.")]

app = typer.Typer(help="List, show and export conversations.", no_args_is_help=True)


@app.command("list")
def list_conversations(
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    since: Since = None,
    before: Before = None,
    model: OfModel = None,
    rating: Rating = None,
    words: Words = None,
    url: Url = None,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Those that match, the latest first."""
    with connected(url, timeout) as client:
        found = client.conversations(limit=limit, **_filters(since, before, model, rating, words))
    if as_json:
        print(json.dumps([one.model_dump(mode="json") for one in found]))
        return
    rows = [(one.id, f"{one.updated_at:%Y-%m-%d %H:%M}", str(one.turns), one.model, _title(one.title)) for one in found]
    print(columns(HEAD, rows))


@app.command()
def show(
    id: Annotated[str, typer.Argument()],  # noqa: A002 - what is typed
    *,
    url: Url = None,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """One conversation: its best branch as text; --json has all of it."""
    with connected(url, timeout) as client:
        if as_json:
            print(client.conversation(id).model_dump_json())
            return
        for piece in client.export("text", id=id):
            print(harmless(piece), end="")


@app.command()
def export(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="None: all that match.")] = None,
    *,
    form: Annotated[
        Format, typer.Option("--format", help="To read, to keep, or one line each to fine-tune with.")
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Else standard output.")] = None,
    since: Since = None,
    before: Before = None,
    model: OfModel = None,
    rating: Rating = None,
    words: Words = None,
    url: Url = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Export conversations as text, JSON, or JSONL for fine-tuning.

    A file is there when all of it is.
    """
    named = {"id": ids} if ids else {}
    writing = whole_file(output) if output else contextlib.nullcontext(sys.stdout)
    with connected(url, timeout) as client, writing as file:
        for piece in client.export(form, **named, **_filters(since, before, model, rating, words)):
            file.write(harmless(piece) if file.isatty() else piece)


def _filters(
    since: str | None, before: str | None, model: str | None, rating: Rated | None, words: str | None
) -> dict[str, str]:
    given = {"from": since, "to": before, "model": model, "rating": rating, "q": words}
    return {name: value for name, value in given.items() if value is not None}


def _title(text: str) -> str:
    line = harmless(" ".join(text.split()))
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"
