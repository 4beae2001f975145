"""`mindfu adapters`, `mindfu promote` and `mindfu rollback`: on the database, whether or not a server runs."""

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from app.desired import BARE, Desired, TrialKind
from app.errors import InvalidRequest, MindFuError, NotFound
from app.postgres import open_pool
from app.promotion import Promoted, promote, rollback, try_out
from app.registry import Registry, digest, split_name
from app.settings import Secrets, home


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the command line."""
    adapters = commands.add_parser("adapters", help="list, add and retire adapters")
    verbs = adapters.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="all adapters, and which of them answer")
    listing.set_defaults(action=_list)
    adding = verbs.add_parser("add", help="make a GGUF LoRA known; it is copied into the home folder")
    adding.add_argument("name", metavar="MODEL@VERSION")
    adding.add_argument("file", type=Path)
    adding.set_defaults(action=_add)
    telling = verbs.add_parser("history", help="who answered when, and why")
    telling.add_argument("name", metavar="MODEL")
    telling.set_defaults(action=_history)
    retiring = verbs.add_parser("retire", help="serve an adapter no longer; its name stays taken")
    retiring.add_argument("name", metavar="MODEL@VERSION")
    retiring.set_defaults(action=_retire)
    promoting = commands.add_parser("promote", help="let an adapter answer for its model's name")
    promoting.add_argument("name", metavar="MODEL@VERSION")
    promoting.add_argument("--force", action="store_true", help="although its gates did not pass it; this is recorded")
    trial = promoting.add_mutually_exclusive_group()
    trial.add_argument(
        "--canary", type=float, metavar="SHARE", help="try it: let it answer this share of conversations"
    )
    trial.add_argument("--shadow", type=float, metavar="SHARE", help="try it: ask it the same, for nobody to see")
    promoting.set_defaults(action=_promote)
    back = commands.add_parser("rollback", help="end a trial, or let the adapter before answer again")
    back.add_argument("name", metavar="MODEL", nargs="?", help="may be left out where one model has adapters")
    back.set_defaults(action=_rollback)
    for command in (promoting, back):
        command.add_argument("--reason", help="for the history")
    for command in (listing, adding, telling, retiring, promoting, back):
        command.add_argument("--json", action="store_true", help="print JSON")


def _list(options: argparse.Namespace) -> int:
    async def work(registry: Registry) -> None:
        desired = await registry.desired()
        if options.json:
            print(desired.model_dump_json())
            return
        _table(("ADAPTER", "STATE", "GATES", "MB", "CREATED"), _rows(desired))

    return _run(work)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rows(desired: Desired) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for adapter in desired.adapters:
        serving = desired.of(adapter.model)
        states = {serving.staged: "staged", serving.previous: "previous", serving.champion: "champion"}
        if trial := serving.trial:
            states[trial.version] = f"{trial.kind} {trial.share:.0%}"
        rows.append((
            adapter.name,
            states.get(adapter.version, ""),
            adapter.verdict or "never ran",
            f"{adapter.size / 1e6:.1f}",
            f"{adapter.created_at:%Y-%m-%d %H:%M}",
        ))  # fmt: skip
    return rows


def _add(options: argparse.Namespace) -> int:
    async def work(registry: Registry) -> None:
        model, version = split_name(options.name)
        digest(options.file)  # before it is copied: it may be no GGUF
        kept = registry.home / "adapters" / model / f"{version}.gguf"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(".part")
            shutil.copyfile(options.file, part)
            part.replace(kept)
        elif digest(kept) != digest(options.file):
            message = f"{kept} is there already with another content. A version is never used twice."
            raise InvalidRequest(message, "version")
        adapter = await registry.add(model, version, kept)
        print(adapter.model_dump_json() if options.json else f"{adapter.name} can be asked for as {model}:{version}.")

    return _run(work)


def _history(options: argparse.Namespace) -> int:
    async def work(registry: Registry) -> None:
        changes = await registry.changes(options.name)
        if options.json:
            print(json.dumps([change.model_dump(mode="json") for change in changes]))
            return
        rows = [
            (
                f"{change.at:%Y-%m-%d %H:%M}",
                change.kind + (f" {change.share:.0%}" if change.share else ""),
                f"{change.before or BARE} → {change.version or BARE}",
                "forced" if change.forced else "",
                change.reason or "",
            )
            for change in changes
        ]
        _table(("AT", "WHAT", "FROM → TO", "GATES", "REASON"), rows)

    return _run(work)


def _retire(options: argparse.Namespace) -> int:
    async def work(registry: Registry) -> None:
        model, version = split_name(options.name)
        await registry.retire(model, version)
        print(json.dumps({"retired": options.name}) if options.json else f"{options.name} is served no longer.")

    return _run(work)


def _promote(options: argparse.Namespace) -> int:
    async def work(registry: Registry) -> None:
        model, version = split_name(options.name)
        done = await _begun(registry, model, version, options)
        _tell(done, json_=options.json)
        await _mirror(registry)

    return _run(work)


async def _begun(registry: Registry, model: str, version: str, options: argparse.Namespace) -> Promoted:
    how = {"force": options.force, "reason": options.reason}
    wanted: tuple[tuple[TrialKind, float | None], ...] = (("canary", options.canary), ("shadow", options.shadow))
    for kind, share in wanted:
        if share is not None:
            if not 0 < share <= 1:
                message = f"--{kind} {share:g}: a share of the conversations is above 0 and at most 1."
                raise InvalidRequest(message, kind)
            return await try_out(registry, model, version, kind, share, **how)
    return await promote(registry, model, version, **how)


def _rollback(options: argparse.Namespace) -> int:
    async def work(registry: Registry) -> None:
        served = [serving.model for serving in (await registry.desired()).servings]
        if options.name is None and len(served) > 1:
            message = f"Name the model: {', '.join(served)} have adapters."
            raise InvalidRequest(message, "name")
        if options.name is None and not served:
            raise NotFound("model", "with a promoted adapter")
        _tell(await rollback(registry, options.name or served[0], reason=options.reason), json_=options.json)
        await _mirror(registry)

    return _run(work)


async def _mirror(registry: Registry) -> None:
    """Let MLflow's aliases follow, where there is an MLflow with our models. Who answers does not hang on it."""
    if not (registry.home / "mlflow").exists() and not os.environ.get("MLFLOW_TRACKING_URI"):
        return
    from mlflow.exceptions import MlflowException  # takes seconds to load

    from train import mirror

    try:
        mirror.aliases(registry.home, await registry.desired())
    except MlflowException as error:
        print(f"MLflow's aliases do not follow yet: {error}", file=sys.stderr)


def _tell(done: Promoted, *, json_: bool) -> None:
    if json_:
        print(done.model_dump_json())
        return
    who = f"{done.model}@{done.champion}" if done.champion else f"the bare base of {done.model}"
    if trial := done.trial:
        who += f" (and {trial.version} as a {trial.kind} of {trial.share:.0%})"
    if not done.engines:
        print(f"{who} will answer for {done.model} as soon as a server runs: none does now.")
        return
    print(f"{who} answers for {done.model}: on {done.engines} replica(s), after {done.seconds:.2f} s.")


def _run(work: Callable[[Registry], Awaitable[None]]) -> int:
    """0: done; 1: it could not be, with the reason printed."""

    async def go() -> None:
        url, folder = Secrets.from_env().postgres_url, home()
        pool = await open_pool(url.get_secret_value() if url else None, folder)
        try:
            await work(Registry(pool, folder))
        finally:
            await pool.close()

    try:
        asyncio.run(go())
    except MindFuError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
