"""`mindfu ingest`: files, folders, patterns and URLs into a running server, new, changed and deleted ones.

Into the server of this home, through its Ray; into any other one with --url or MINDFU_URL, over HTTP.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import typer

from app.errors import InvalidRequest, MindFuError, Unavailable
from app.ingestion import Ingestion, Library, Outcome, Report, State
from app.memory import require_open
from app.messages import Metadata
from app.settings import Client, home
from app.vectors import check_name
from deployments.cli_options import Json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOWN = 20  # failures, and omissions, in the report for people; --json has all
STATES: dict[State, str] = {
    "added": "added",
    "unchanged": "unchanged",
    "duplicate": "with a content that is there already",
    "deleted": "deleted",
    "skipped": "skipped",
    "failed": "failed",
}


class Where(NamedTuple):
    """Into which collection of which library, and how. url: None for the server of this home."""

    collection: str
    tenant: str
    metadata: Metadata
    url: str | None
    workers: int | None
    private: bool


def ingest(
    places: Annotated[
        list[str] | None, typer.Argument(metavar="PLACE", help="A path, a pattern in quotes, or a URL.")
    ] = None,
    *,
    listed: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="A file with one place a line; -: standard input."),
    ] = None,
    collection: str = "default",
    tenant: Annotated[str, typer.Option(help="Whose; over HTTP it is the key's.")] = "default",
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of all; repeat it.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Delete nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often --watch looks.")] = 5.0,
    url: Annotated[
        str | None,
        typer.Option(help="Of a server elsewhere.", show_default="MINDFU_URL, else the server of this home"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that embed, or uploads.", show_default="CPUs, or 4")
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Fetch from private addresses as well.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Take in files, folders and URLs; again: what changed.

    Exit status 0: all is in; 1: something failed; 2: it could not begin; 130: Ctrl-C.
    """
    try:
        found = [*(places or ()), *_listed(listed)]
        if not found:
            raise InvalidRequest("Name what to take in: paths, patterns or URLs.")
        require_open(check_name(collection))
        where = Where(collection, tenant, _metadata(metadata or ()), url, workers, allow_private)
        with _library(where) as library:
            ingestion = Ingestion(found, library, keep=keep)
            failed = _run(ingestion, as_json=as_json)
            while watch:
                time.sleep(every)
                ingestion.learn()
                failed |= _run(ingestion, as_json=as_json, quiet=True)
    except KeyboardInterrupt:
        print("Stopped. What is in stays in; the same command goes on.", file=sys.stderr)
        return 130
    except (MindFuError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return int(failed)


@contextlib.contextmanager
def _library(where: Where) -> Iterator[Library]:
    client = Client.from_env()
    url = where.url or client.url
    if url:
        from deployments.uploading import Remote

        key = client.api_key.get_secret_value() if client.api_key else None
        yield Remote(
            url,
            key,
            collection=where.collection,
            metadata=where.metadata,
            uploads=where.workers or 4,
            private=where.private,
        )
        return
    from deployments.joining import address_of, joined

    folder = home()
    address = address_of(folder)
    if address is None:
        raise Unavailable("server", f"none runs on {folder}. Start it with `mindfu serve`, or name one with --url")
    with joined(folder, address):
        from deployments.bulk import Cluster

        try:
            library = Cluster(
                folder,
                tenant=where.tenant,
                collection=where.collection,
                metadata=where.metadata,
                private=where.private,
                workers=where.workers,
            )
        except LookupError as error:
            raise Unavailable("server", f"it runs on {folder}, and has no {error} yet") from error
        yield library


def _listed(file: str | None) -> list[str]:
    """Places of a list: one a line, # begins a remark."""
    if file is None:
        return []
    lines = sys.stdin.read() if file == "-" else Path(file).read_text()
    return [line.strip() for line in lines.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _metadata(pairs: Sequence[str]) -> Metadata:
    found: Metadata = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InvalidRequest(f"'{pair}' is no KEY=VALUE.", "metadata")
        found[name] = value
    return found


def _run(ingestion: Ingestion, *, as_json: bool, quiet: bool = False) -> bool:
    """One run, shown. quiet: nothing is said where nothing happened. Whether something failed."""
    with contextlib.redirect_stdout(sys.stderr), _Shown() as shown:  # Ray prints remarks, and a program reads ours
        report = ingestion.run(shown)
    happened = set(report.counts) - {"unchanged", "skipped"}
    if not quiet or happened:
        print(json.dumps(_as_json(report)) if as_json else _as_text(report), flush=True)
    return report.counts["failed"] > 0


class _Shown:
    """A progress bar on a terminal, and nothing elsewhere."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._chunks = self._failed = 0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def planned(self, documents: int) -> None:
        """Begin the bar."""
        if not documents or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("starting", total=documents)
        self._progress.start()
        self._began = time.monotonic()

    def saw(self, outcome: Outcome) -> None:
        """One step."""
        self._chunks += outcome.chunks if outcome.state == "added" else 0
        self._failed += outcome.state == "failed"
        if self._progress and self._task is not None and outcome.state in {"added", "duplicate", "skipped", "failed"}:
            rate = self._chunks / max(1e-9, time.monotonic() - self._began)
            told = f"{rate:.0f} chunks/s" + (f", {self._failed} failed" if self._failed else "")
            self._progress.update(self._task, advance=1, description=told)


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "counts": dict(report.counts),
        "chunks": report.chunks,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "documents": [outcome._asdict() for outcome in report.outcomes],
    }


def _as_text(report: Report) -> str:
    counts = [f"{report.counts[state]} {words}" for state, words in STATES.items() if report.counts[state]]
    rate = f"{report.chunks} chunks, {report.chunks / max(report.seconds, 1e-9):.1f} a second"
    lines = [f"{', '.join(counts) or 'nothing found'}; {rate}, in {report.seconds:.1f} s"]
    omissions: tuple[State, ...] = ("skipped", "failed")
    for state in omissions:
        found = report.of(state)
        lines += [f"  {state} {outcome.uri}: {outcome.why}" for outcome in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  … and {len(found) - SHOWN} more {state}; --json names them all")
    return "\n".join(lines)
