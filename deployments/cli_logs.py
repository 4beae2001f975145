"""`mindfu ingest-logs`, `mindfu stats`, `mindfu copy`: conversations from elsewhere, how much there is, files moved.

All work on the database, whether or not a server runs. What is imported is found again as soon as a server has
remembered it, which it does in the background.
"""

import json
import posixpath
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any

import asyncpg
import typer

from app.errors import NotFound
from app.imports import Imports
from app.log_files import find, place
from app.logs import Session, Unreadable
from app.settings import home
from app.stats import counted, disk
from deployments.cli_database import with_database
from deployments.cli_options import Json

SHOWN = 20  # reasons to skip something; --json has all


@dataclass
class Report:
    """What became of everything that was found."""

    sessions: Counter[str] = field(default_factory=Counter)  # read, by format
    conversations: int = 0  # with new turns
    turns: int = 0
    known_turns: int = 0
    cleared: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """For people."""
        read = ", ".join(f"{count} {form}" for form, count in sorted(self.sessions.items())) or "none"
        found = [f"{self.cleared} imported conversations forgotten"] if self.cleared else []
        found += [
            f"sessions read: {read}",
            f"new: {self.turns} turns in {self.conversations} conversations; known already: {self.known_turns} turns",
        ]
        found += [f"left out: {count} {what}" for what, count in sorted(self.left_out.items())]
        reasons: dict[str, list[str]] = {}
        for where, why in self.skipped:
            reasons.setdefault(why, []).append(where)
        found += [f"skipped: {len(self.skipped)}"] if self.skipped else []
        for why, places in list(reasons.items())[:SHOWN]:
            found.append(f"  {places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {why}")
        more = len(reasons) - SHOWN
        return found + ([f"  … and for {more} more reasons, which --json lists"] if more > 0 else [])


def ingest_logs(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Files, folders, or URLs like s3://bucket/logs.")
    ] = None,
    *,
    tenant: Annotated[str, typer.Option(help="Whose conversations they become.")] = "default",
    clear: Annotated[
        bool, typer.Option("--clear", help="First forget what was imported before, and remember all turns anew.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Import conversations: Mistral Vibe, OpenAI and ShareGPT JSONL, our own.

    Exit status 0: done; 1: nothing could be read; 2: nothing was named.
    """
    if not paths and not clear:
        print("Name a file or a folder to import, or --clear.", file=sys.stderr)
        return 2

    async def work(pool: asyncpg.Pool) -> tuple[Report, int]:
        imports, report = Imports(pool, tenant), Report()
        if clear:
            report.cleared = await imports.clear()
            await imports.remember()
        for path in paths or ():
            await _import(path, imports, report)
        waiting: int = (await counted(pool, tenant))["memory"]["waiting"]
        return report, waiting

    report, waiting = with_database(work)
    if as_json:
        told = {**report.__dict__, "skipped": [{"where": where, "why": why} for where, why in report.skipped]}
        print(json.dumps(told | {"waiting_to_be_remembered": waiting}))
    else:
        print("\n".join(report.lines()))
        if waiting:
            print(f"{waiting} turns wait to be remembered; a running server does that in the background.")
    return 0 if report.sessions or not report.skipped else 1


async def _import(path: str, imports: Imports, report: Report) -> None:
    for found in find(path):
        if isinstance(found.what, Unreadable):
            report.skipped.append((found.where, str(found.what)))
            continue
        kept = await imports.keep(found.what, found.where, found.modified)
        report.sessions[found.what.format if isinstance(found.what, Session) else "mindfu"] += 1
        report.conversations += kept.new > 0
        report.turns += kept.new
        report.known_turns += kept.known
        report.left_out.update(found.what.left_out if isinstance(found.what, Session) else {})


def stats(
    *, tenant: Annotated[str | None, typer.Option(help="Of one tenant only.")] = None, as_json: Json = False
) -> None:
    """How much there is, and what it takes."""
    found = with_database(lambda pool: counted(pool, tenant))
    found["disk"] |= disk(home())
    if as_json:
        print(json.dumps(found))
        return
    for part, numbers in found.items():
        print(part)
        for name, number in numbers.items():
            shown = _bytes(number) if part == "disk" or name == "bytes" else f"{number:,}"
            print(f"  {name.replace('_', ' '):<24}{shown:>14}")


def copy(
    source: Annotated[str, typer.Argument(help="A file, a folder, or a URL like s3://bucket/logs.")],
    target: Annotated[str, typer.Argument(help="A folder, or a URL.")],
    *,
    as_json: Json = False,
) -> None:
    """Copy new and changed files of a folder: paths, or URLs like s3://bucket/logs.

    Names are kept, what is the same is left alone, and nothing is deleted.
    """
    copied = same = 0
    (here, path), (there, target_path) = place(source), place(target)
    if not here.exists(path):
        raise NotFound("file or folder", source)
    folder = path if here.isdir(path) else posixpath.dirname(path)
    for file in sorted(here.find(path)) if here.isdir(path) else [path]:
        to = posixpath.join(target_path, posixpath.relpath(file, folder))
        if there.exists(to) and _same(here, file, there, to):
            same += 1
            continue
        there.makedirs(posixpath.dirname(to), exist_ok=True)
        with here.open(file, "rb") as read, there.open(to, "wb") as write:
            while block := read.read(2**20):
                write.write(block)
        copied += 1
    print(json.dumps({"copied": copied, "same": same}) if as_json else f"{copied} files copied, {same} the same.")


def _same(here: Any, file: str, there: Any, other: str) -> bool:
    """Whether two files hold the same; read only where their sizes do not tell."""
    same_size = here.info(file)["size"] == there.info(other)["size"]
    return same_size and bool(here.cat_file(file) == there.cat_file(other))


def _bytes(number: int) -> str:
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
