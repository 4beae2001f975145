"""`mindfu train` and `mindfu runs`: the learning loop as a whole, on the database, whether or not a server runs.

Where a server of this home runs, its trainer works on the run; else this command does, in a process beside it.
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, get_args

import asyncpg
import typer
import yaml

from app import params
from app.errors import InvalidRequest, MindFuError, NotFound, Unavailable
from app.runs import ENDED, Order, Run, Runs, StageName
from app.settings import home, params_file
from deployments.cli_columns import columns
from deployments.cli_database import with_database
from deployments.cli_options import Json
from deployments.joining import address_of
from deployments.training import Children, Queue

LOOK_S = 0.5
HEAD = ("RUN", "STATE", "STAGE", "RESULT", "ASKED BY", "CREATED")
Tenant = Annotated[str, typer.Option(help="Whose conversations and runs.")]
Name = Annotated[str, typer.Argument(metavar="RUN")]

runs = typer.Typer(help="List, show, and cancel training runs.", no_args_is_help=True)


def train(
    data: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Learn from this file or folder. Repeat it.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Learn from a data set of the Hugging Face Hub.")
    ] = None,
    *,
    conversations: Annotated[
        bool | None,
        typer.Option(help="Learn from recorded conversations.", show_default="where nothing else is named"),
    ] = None,
    trusted: Annotated[
        Path | None, typer.Option(help="Judge by these conversations as well: their answers are right.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="How often all of it is seen.", show_default="params.yaml")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="The name in MLflow.", show_default="params.yaml")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.NAME=VALUE", help="A parameter, as YAML. Repeat it.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--params", help="Instead of params.yaml.")] = None,
    until: Annotated[str, typer.Option(metavar="|".join(get_args(StageName)), help="The last stage.")] = "publish",
    promote: Annotated[bool, typer.Option(help="Let it answer, if its gates pass it.")] = False,
    detach: Annotated[bool, typer.Option(help="Do not wait for it.")] = False,
    tenant: Tenant = "default",
    as_json: Json = False,
) -> int:
    """Learn: from conversations to an adapter that can be promoted, or a reason why not."""
    own = bool(data or dataset)
    order = Order(
        conversations=not own if conversations is None else conversations,
        paths=tuple(str(path.expanduser().absolute()) for path in data or ()),
        dataset=dataset,
        inputs={"evaluate.trusted": str(trusted.expanduser().absolute())} if trusted else {},
        parameters=_parameters(file or params_file(), settings or [], tenant, epochs, experiment),
        until=_stage(until),
        promote=promote,
    )
    _check(order)

    async def work(pool: asyncpg.Pool) -> Run:
        store = Runs(pool)
        run = await store.add(tenant, order, "command")
        return run if detach else await _followed(store, run, quiet=as_json)

    run = with_database(work)
    _tell(run, as_json=as_json)
    return 0 if run.state in {"queued", "succeeded"} and (detach or not promote or run.result.get("promoted")) else 1


@runs.command("list")
def list_runs(*, limit: int = 20, tenant: Tenant = "default", as_json: Json = False) -> None:
    """The latest runs."""
    found = with_database(lambda pool: Runs(pool).list(tenant, limit=limit))
    if as_json:
        print(json.dumps([run.model_dump(mode="json") for run in found]))
    else:
        print(columns(HEAD, [_row(run) for run in found]))


@runs.command()
def show(name: Name, *, tenant: Tenant = "default", as_json: Json = False) -> None:
    """One run: its stages, and what happened."""

    async def work(pool: asyncpg.Pool) -> tuple[Run, Any, Any]:
        store = Runs(pool)
        run = await store.get(tenant, name)
        return run, await store.stages(run.id), await store.events_since(run.id)

    run, stages, events = with_database(work)
    if as_json:
        told = {"stages": stages, "events": events}
        print(
            json.dumps(
                run.model_dump(mode="json") | {k: [one.model_dump(mode="json") for one in v] for k, v in told.items()}
            )
        )
        return
    print(columns(HEAD, [_row(run)]))
    for event in events:
        print(f"{event.at:%Y-%m-%d %H:%M:%S}  {event.text}")


@runs.command()
def logs(name: Name, *, as_json: Json = False) -> None:
    """What a run printed."""
    from train.run import log_file

    file = log_file(home(), name)
    if not file.exists():
        raise NotFound("log of a run", name)
    text = file.read_text(encoding="utf-8", errors="replace")
    if as_json:
        print(json.dumps({"run": name, "log": text}))
    else:
        print(text, end="")


@runs.command()
def cancel(name: Name, *, tenant: Tenant = "default", as_json: Json = False) -> None:
    """End a run. What its stages did is kept: the same run again goes on there."""
    run = with_database(lambda pool: Runs(pool).cancel(tenant, name))
    _tell(run, as_json=as_json)


def mlflow(*, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Show MLflow's pages: runs, numbers, versions of models. It asks nobody who they are: keep it to this machine."""
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI", "")
    if elsewhere.startswith(("http://", "https://")):
        raise InvalidRequest(f"MLFLOW_TRACKING_URI names a server that shows them already: {elsewhere}", "port")
    folder = home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    uri = elsewhere or f"sqlite:///{folder / 'mlflow.db'}"
    print(f"MLflow shows {uri} on http://{host}:{port}, Ctrl-C stops it.", flush=True)
    place = ["--backend-store-uri", uri, "--default-artifact-root", (folder / "artifacts").as_uri()]
    listen = ["--host", host, "--port", str(port), "--workers", "1"]  # four by default, each loads for seconds
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # of its own kind of jobs, which nobody here asks for
    command = [sys.executable, "-m", "mlflow", "server", *place, *listen]
    os.execve(sys.executable, command, {**os.environ, **own})  # noqa: S606 - our own arguments


async def _followed(store: Runs, run: Run, *, quiet: bool) -> Run:
    """Wait until it has ended, and work on it where no server does. Ctrl-C cancels it."""
    children = None if address_of(home()) else Children(home())
    watch = Watch(store, run, None if children is None else Queue(store, children), quiet=quiet)
    try:
        return await watch.until_ended()
    except asyncio.CancelledError:  # Ctrl-C
        print("Cancelling it …", file=sys.stderr)
        with suppress(MindFuError):
            await store.cancel(run.tenant, run.id)
        return await watch.until_ended()
    finally:
        if children is not None:
            children.close()


class Watch:
    """Prints what happens to a run. queue: to work on it meanwhile; None: somebody else does."""

    def __init__(self, store: Runs, run: Run, queue: Queue | None, *, quiet: bool) -> None:
        self._store, self._run, self._queue, self._quiet = store, run, queue, quiet
        self._event, self._shown = 0, ""

    async def until_ended(self) -> Run:
        """The run as it ended."""
        self._print(f"{self._run.id} is queued" + ("." if self._queue else ": the server of this home works on it."))
        while True:
            try:
                if self._queue is not None:
                    await self._queue.once()
                run = await self._store.get(None, self._run.id)
                await self._events(run)
                if run.state in ENDED:
                    return run
                self._progress(run)
            except Unavailable as error:
                self._print(f"Waiting. {error}")
            await asyncio.sleep(LOOK_S)

    async def _events(self, run: Run) -> None:
        for event in await self._store.events_since(run.id, self._event):
            self._event = event.id
            self._print(("! " if event.level != "info" else "  ") + event.text)

    def _progress(self, run: Run) -> None:
        """A line on a terminal that the next one overwrites."""
        if self._quiet or run.progress is None or not sys.stderr.isatty():
            return
        told = run.progress
        many = "" if told.total is None else f" {told.done}/{told.total}"
        self._shown = f"  {told.stage}{many} {told.text}"[:110]
        print(f"\r\033[K{self._shown}", end="", file=sys.stderr, flush=True)

    def _print(self, text: str) -> None:
        if self._quiet:
            return
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr)
            self._shown = ""
        print(text, flush=True)


def _parameters(
    file: Path, settings: list[str], tenant: str, epochs: float | None, experiment: str | None
) -> dict[StageName, dict[str, Any]]:
    changes: dict[StageName, dict[str, Any]] = {"export": {"tenants": [tenant]}, "tune": {}}
    for text in settings:
        name, equals, value = text.partition("=")
        path = name.split(".")
        if not equals or len(path) < 2:
            raise InvalidRequest(f"'--set {text}' is no STAGE.NAME=VALUE.", "--set")
        section = changes.setdefault(_stage(path[0]), {})
        for part in path[1:-1]:
            section = section.setdefault(part, {})
        section[path[-1]] = yaml.safe_load(value)
    changes["tune"] |= {} if epochs is None else {"epochs": epochs}
    changes["tune"] |= {} if experiment is None else {"experiment": experiment}
    return params.changed(params.read(file), changes)


def _stage(text: str) -> StageName:
    found = next((name for name in params.STAGES if name == text), None)
    if found is None:
        raise InvalidRequest(f"'{text}' is no stage of a run: {', '.join(params.STAGES)}.", "stage")
    return found


def _check(order: Order) -> None:
    """Raises MindFuError, before anything is queued, where it cannot succeed whatever the data are."""
    try:
        from train import pipeline
    except ModuleNotFoundError as error:
        raise InvalidRequest(f"{error.name} is not installed: pip install 'mindfu[train]'.") from error
    pipeline.check(order)


def _tell(run: Run, *, as_json: bool) -> None:
    if as_json:
        print(run.model_dump_json())
        return
    if run.error:
        print(f"{run.id} has failed: {run.error}", file=sys.stderr)
        return
    name, verdict = run.result.get("name"), run.result.get("verdict")
    if run.state != "succeeded" or not name:
        print(f"{run.id}: {run.state}.")
    elif run.result.get("promoted"):
        print(f"{name} answers.")
    elif verdict == "passed":
        print(f"{name} passed its gates. Let it answer: mindfu promote {name}")
    else:
        reasons = run.result.get("reasons")
        print(f"{name} is blocked by its gates: {'; '.join(map(str, reasons)) if isinstance(reasons, list) else ''}.")


def _row(run: Run) -> tuple[str, ...]:
    state = "cancelling" if run.cancelling and run.state == "running" else run.state
    stage = run.progress.stage if run.progress and run.state == "running" else ""
    result = " ".join(str(run.result[key]) for key in ("name", "verdict") if run.result.get(key))
    return (run.id, state, stage, result or (run.error or "")[:60], run.origin, f"{run.created_at:%Y-%m-%d %H:%M}")
