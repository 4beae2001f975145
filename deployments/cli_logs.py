"""`mindfu ingest-logs`, `mindfu stats`, `mindfu copy`: conversations from elsewhere, how much there is, files moved.

All work on the database, whether or not a server runs. What is imported is found again as soon as a server has
remembered it, which it does in the background.
"""

import argparse
import asyncio
import json
import posixpath
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from app.errors import MindFuError
from app.imports import Imports
from app.log_files import find, place
from app.logs import Session, Unreadable
from app.postgres import open_pool
from app.settings import Secrets, home
from app.stats import counted, disk

SHOWN = 20  # reasons to skip something; --json has all


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the command line."""
    logs = commands.add_parser(
        "ingest-logs", help="import conversations: Mistral Vibe, OpenAI and ShareGPT JSONL, our own"
    )
    logs.add_argument("paths", nargs="*", metavar="PATH", help="files, folders, or URLs like s3://bucket/logs")
    logs.add_argument("--tenant", default="default", help="whose conversations they become")
    logs.add_argument(
        "--clear", action="store_true", help="first forget what was imported before, and remember all turns anew"
    )
    logs.set_defaults(action=_ingest)
    stats = commands.add_parser("stats", help="how much there is, and what it takes")
    stats.add_argument("--tenant", help="of one tenant only")
    stats.set_defaults(action=_stats)
    copy = commands.add_parser(
        "copy", help="copy new and changed files of a folder: paths, or URLs like s3://bucket/logs"
    )
    copy.add_argument("source")
    copy.add_argument("target")
    copy.set_defaults(action=_copy)
    for command in (logs, stats, copy):
        command.add_argument("--json", action="store_true", help="print JSON")


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


def _ingest(options: argparse.Namespace) -> int:
    if not options.paths and not options.clear:
        print("Name a file or a folder to import, or --clear.", file=sys.stderr)
        return 2

    async def work(pool: asyncpg.Pool) -> int:
        imports, report = Imports(pool, options.tenant), Report()
        if options.clear:
            report.cleared = await imports.clear()
            await imports.remember()
        for path in options.paths:
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
        waiting = (await counted(pool, options.tenant))["memory"]["waiting"]
        if options.json:
            told = {**report.__dict__, "skipped": [{"where": where, "why": why} for where, why in report.skipped]}
            print(json.dumps(told | {"waiting_to_be_remembered": waiting}))
        else:
            print("\n".join(report.lines()))
            if waiting:
                print(f"{waiting} turns wait to be remembered; a running server does that in the background.")
        return 0 if report.sessions or not report.skipped else 1

    return _with_database(work)


def _stats(options: argparse.Namespace) -> int:
    async def work(pool: asyncpg.Pool) -> int:
        found = await counted(pool, options.tenant)
        found["disk"] |= disk(home())
        if options.json:
            print(json.dumps(found))
            return 0
        for part, numbers in found.items():
            print(part)
            for name, number in numbers.items():
                shown = _bytes(number) if part == "disk" or name == "bytes" else f"{number:,}"
                print(f"  {name.replace('_', ' '):<24}{shown:>14}")
        return 0

    return _with_database(work)


def _copy(options: argparse.Namespace) -> int:
    """Names are kept, what is the same is left alone, and nothing is deleted."""
    copied = same = 0
    try:
        (here, source), (there, target) = place(options.source), place(options.target)
        if not here.exists(source):
            print(f"There is nothing at {options.source}.", file=sys.stderr)
            return 1
        folder = source if here.isdir(source) else posixpath.dirname(source)
        for file in sorted(here.find(source)) if here.isdir(source) else [source]:
            to = posixpath.join(target, posixpath.relpath(file, folder))
            if there.exists(to) and _same(here, file, there, to):
                same += 1
                continue
            there.makedirs(posixpath.dirname(to), exist_ok=True)
            with here.open(file, "rb") as read, there.open(to, "wb") as write:
                while block := read.read(2**20):
                    write.write(block)
            copied += 1
    except (MindFuError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"copied": copied, "same": same}) if options.json else f"{copied} files copied, {same} the same.")
    return 0


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


def _with_database(work: Callable[[asyncpg.Pool], Awaitable[int]]) -> int:
    """What the work returns; 1 where it could not be done, with the reason printed."""

    async def go() -> int:
        secret = Secrets.from_env().postgres_url
        pool = await open_pool(secret.get_secret_value() if secret else None, home())
        try:
            return await work(pool)
        finally:
            await pool.close()

    try:
        return asyncio.run(go())
    except MindFuError as error:
        print(error, file=sys.stderr)
        return 1
