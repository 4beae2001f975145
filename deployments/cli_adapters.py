"""`mindfu adapters`, `mindfu promote` and `mindfu rollback`: on the database, whether or not a server runs."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import asyncpg
import typer

from app.desired import BARE, Desired, TrialKind
from app.errors import Conflict, InvalidRequest
from app.promotion import Promoted, promote, rollback, try_out
from app.registry import Change, Registry, digest, split_name
from app.settings import home
from deployments.cli_columns import columns
from deployments.cli_database import with_database
from deployments.cli_options import Json

HEAD = ("ADAPTER", "STATE", "GATES", "MB", "CREATED")
CHANGES = ("AT", "WHAT", "FROM → TO", "GATES", "REASON")
Name = Annotated[str, typer.Argument(metavar="MODEL@VERSION")]
Reason = Annotated[str | None, typer.Option(help="For the history.")]

app = typer.Typer(help="List, add and retire adapters.", no_args_is_help=True)


@app.command("list")
def list_adapters(*, as_json: Json = False) -> None:
    """All adapters, and which of them answer."""
    desired = with_database(lambda pool: Registry(pool, home()).desired())
    print(desired.model_dump_json() if as_json else columns(HEAD, _rows(desired)))


@app.command()
def add(name: Name, file: Path, *, as_json: Json = False) -> None:
    """Make a GGUF LoRA known; it is copied into the home folder."""
    model, version = split_name(name)
    kept = _kept(file, home() / "adapters" / model / f"{version}.gguf")
    adapter = with_database(lambda pool: Registry(pool, home()).add(model, version, kept))
    print(adapter.model_dump_json() if as_json else f"{adapter.name} can be asked for as {model}:{version}.")


@app.command()
def history(name: Annotated[str, typer.Argument(metavar="MODEL")], *, as_json: Json = False) -> None:
    """Who answered when, and why."""
    changes = with_database(lambda pool: Registry(pool, home()).changes(name))
    if as_json:
        print(json.dumps([change.model_dump(mode="json") for change in changes]))
    else:
        print(columns(CHANGES, [_told(change) for change in changes]))


@app.command()
def retire(name: Name, *, as_json: Json = False) -> None:
    """Serve an adapter no longer; its name stays taken."""
    model, version = split_name(name)
    with_database(lambda pool: Registry(pool, home()).retire(model, version))
    print(json.dumps({"retired": name}) if as_json else f"{name} is served no longer.")


def promote_adapter(
    name: Name,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Although its gates did not pass it; this is recorded.")
    ] = False,
    canary: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Try it: let it answer this share of conversations.")
    ] = None,
    shadow: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Try it: ask it the same, for nobody to see.")
    ] = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Let an adapter answer for its model's name, or try it out."""
    if canary is not None and shadow is not None:
        message = "an adapter is tried in one way at a time"
        raise typer.BadParameter(message, param_hint=["--canary", "--shadow"])
    trial = _trial("canary", canary) or _trial("shadow", shadow)
    model, version = split_name(name)

    async def work(pool: asyncpg.Pool) -> None:
        registry = Registry(pool, home())
        if trial is None:
            done = await promote(registry, model, version, force=force, reason=reason)
        else:
            done = await try_out(registry, model, version, *trial, force=force, reason=reason)
        _tell(done, as_json=as_json)
        await _mirror(registry)

    with_database(work)


def roll_back(
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="May be left out where one model has adapters.")
    ] = None,
    *,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """End a trial, or let the adapter before answer again; a second time undoes that."""

    async def work(pool: asyncpg.Pool) -> None:
        registry = Registry(pool, home())
        served = [serving.model for serving in (await registry.desired()).servings]
        if name is None and len(served) > 1:
            message = f"Name the model: {', '.join(served)} have adapters."
            raise InvalidRequest(message, "name")
        if name is None and not served:
            raise Conflict("No model has an adapter that answers: there is nothing to take back.")
        _tell(await rollback(registry, name or served[0], reason=reason), as_json=as_json)
        await _mirror(registry)

    with_database(work)


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


def _told(change: Change) -> tuple[str, ...]:
    return (
        f"{change.at:%Y-%m-%d %H:%M}",
        change.kind + (f" {change.share:.0%}" if change.share else ""),
        f"{change.before or BARE} → {change.version or BARE}",
        "forced" if change.forced else "",
        change.reason or "",
    )


def _trial(kind: TrialKind, share: float | None) -> tuple[TrialKind, float] | None:
    if share is None:
        return None
    if not 0 < share <= 1:
        message = f"--{kind} {share:g}: a share of the conversations is above 0 and at most 1."
        raise InvalidRequest(message, kind)
    return kind, share


def _kept(file: Path, kept: Path) -> Path:
    """The home's copy of an adapter. Raises InvalidRequest where the name is taken by another one."""
    digest(file)  # before it is copied: it may be no GGUF
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        shutil.copyfile(file, part)
        part.replace(kept)
    elif digest(kept) != digest(file):
        message = f"{kept} is there already with another content. A version is never used twice."
        raise InvalidRequest(message, "version")
    return kept


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


def _tell(done: Promoted, *, as_json: bool) -> None:
    if as_json:
        print(done.model_dump_json())
        return
    who = f"{done.model}@{done.champion}" if done.champion else f"the bare base of {done.model}"
    if trial := done.trial:
        who += f" (and {trial.version} as a {trial.kind} of {trial.share:.0%})"
    if not done.engines:
        print(f"{who} will answer for {done.model} as soon as a server runs: none does now.")
        return
    print(f"{who} answers for {done.model}: on {done.engines} replica(s), after {done.seconds:.2f} s.")
