"""Work on one run of the learning loop: its stages one after the other, told to PostgreSQL as it goes.

    python -m train.run ftjob-… 1          # the run, and the attempt at it; `mindfu train` and the trainer call it

A process that is killed leaves finished stages in their folders, and an unfinished one where it can go on: the next
attempt begins there. While PostgreSQL is away training goes on, and what is to be told waits. Somebody who cancels the
run, or another process that took it over because this one was silent, is noticed within seconds.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import asyncpg
from pydantic import JsonValue

from app.errors import MindFuError, NothingToLearn, NotPromoted, Unavailable
from app.lending import give_back, lend, lent_to
from app.postgres import open_pool
from app.promotion import promote
from app.registry import Registry, split_name
from app.runs import BEAT_S, Progress, Run, Runs
from app.settings import Secrets, home
from app.uploads import Uploads
from train import cluster, lines, pipeline, stages
from train.pipeline import GATHERING, Step, Written

LOGS = "logs"  # beneath <home>/runs: what each run prints
AWAY_S = 600.0  # that a stage or a word may wait for PostgreSQL
RETRY_S = 2.0
NICENESS = 10
STOP_S = 30.0  # that a stage may take to end when it is told to
HISTORY = "history.jsonl"

T = TypeVar("T")
log = logging.getLogger(__name__)


def log_file(home: Path, run_id: str) -> Path:
    """Where what a run prints is kept."""
    return home / "runs" / LOGS / f"{run_id}.log"


def main() -> None:
    """Run the command line. 0: it succeeded, or was cancelled; 1: it failed; 3: it is somebody else's now."""
    parser = argparse.ArgumentParser(prog="python -m train.run", description="Work on a queued run.")
    parser.add_argument("run")
    parser.add_argument("attempt", type=int)
    options = parser.parse_args()
    folder = home()
    os.nice(NICENESS)  # questions are answered first
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which Ray's jobs are started without
    _log_to(log_file(folder, options.run))
    with Desk(folder) as desk:
        run = desk.ask(desk.runs.get(None, options.run))
        if run.attempt != options.attempt or run.state != "running":
            print(f"{run.id} is {run.state}, attempt {run.attempt}: not ours")
            sys.exit(3)
        desk.watch(run)
        sys.exit(work(desk, run))


class Desk:
    """What the working thread asks PostgreSQL, by an event loop in a thread of its own, and what that thread does
    meanwhile: says that we live, tells how far the stage is, notices that we are to stop.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stopped: Literal["cancel", "lost"] | None = None
        self._folder: tuple[str, Path] | None = None  # the stage that runs
        self._told = 0  # bytes of its history
        self._said = ""  # the last numbers of training
        self._watching: concurrent.futures.Future[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="desk", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        url = Secrets.from_env().postgres_url
        self.pool: asyncpg.Pool = self._await(open_pool(url.get_secret_value() if url else None, self.home))
        self.runs = Runs(self.pool)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
        with contextlib.suppress(Exception):
            self._await(asyncio.wait_for(self.pool.close(), 10))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """What it gives."""
        return self._await(work)

    def tell(self, method: str, *arguments: object, **named: object) -> Any:
        """Call a method of the runs, and again until PostgreSQL has it. Raises Unavailable after AWAY_S."""
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return self._await(getattr(self.runs, method)(*arguments, **named))
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def watch(self, run: Run) -> None:
        """Look after a run from now on."""
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(run), self._loop)

    def follow(self, name: str, folder: Path | None) -> None:
        """Tell how far this stage is. None: it has ended."""
        history = folder / HISTORY if folder else None
        self._told = history.stat().st_size if history and history.exists() else 0
        self._folder = (name, folder) if folder else None

    async def _watch(self, run: Run) -> None:
        while self.stopped is None:
            try:
                said = await self.runs.beat(run, self._progress())
                await self._metrics(run)
                if said != "go on":
                    self.stopped = said
            except Unavailable as error:
                log.warning("Going on without telling anyone. %s", error)
            except Exception:  # the loop's edge: the run must not be taken for dead because of one bad number
                log.exception("the run could not be told of")
            await asyncio.sleep(BEAT_S)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(STOP_S)
        log.error("the stage does not end: killing it")
        if self.stopped == "cancel":
            with contextlib.suppress(Unavailable):
                await self.runs.finish(run, "cancelled")
        os.killpg(0, signal.SIGKILL)

    def _progress(self) -> Progress | None:
        if self._folder is None:
            return None
        name, folder = self._folder
        try:
            told = json.loads((folder / stages.PROGRESS).read_bytes())
            return Progress(stage=name, done=told["done"], total=told["total"], text=told["text"])
        except (OSError, ValueError, KeyError):  # it has not said anything yet
            return Progress(stage=name)

    async def _metrics(self, run: Run) -> None:
        """New numbers of training, as events."""
        if self._folder is None or not (history := self._folder[1] / HISTORY).exists():
            return
        with history.open("rb") as file:
            file.seek(self._told)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines():
            numbers = json.loads(line)
            said = _numbers(numbers)
            if said != self._said and {"loss", "eval_loss"} & set(numbers):
                await self.runs.note(run, said, kind="metrics", data=numbers)
            self._said = said
        self._told += len(whole)

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def work(desk: Desk, run: Run) -> int:
    """Do a run to its end, and say how it ended. 0: it succeeded or was cancelled; 1: it failed; 3: see `main`."""
    try:
        result = _stages(desk, run)
    except MindFuError as error:
        return _failed(desk, run, str(error), error.code)
    except (KeyboardInterrupt, SystemExit):
        return _stopped(desk, run)
    except ModuleNotFoundError as error:
        return _failed(desk, run, f"{error.name} is not installed. pip install 'mindfu[train]'.", "not_installed")
    except Exception as error:  # noqa: BLE001 - the edge of the run: its last word is why it ended
        if desk.stopped is not None:  # what broke, broke because it was told to stop
            return _stopped(desk, run)
        traceback.print_exc()
        where = log_file(desk.home, run.id)
        return _failed(desk, run, f"{type(error).__name__}: {_first_line(error)} (see {where})", "internal_error")
    _say(desk, run, "The run has succeeded.", result=result)
    desk.tell("finish", run, "succeeded", result=result)
    return 0


def _stages(desk: Desk, run: Run) -> dict[str, JsonValue]:
    """The steps of a run. Returns what came of it."""
    order = run.order
    if run.begun > 1:
        _say(desk, run, f"Attempt {run.attempt}: it goes on where the one before ended.")
    pipeline.check(order)
    uploads = _uploads(desk, run)
    told = pipeline.steps(order, uploads)
    before = {stage.name: desk.home / stage.folder for stage in desk.tell("stages", run.id) if stage.finished_at}
    done: dict[str, Path] = {}
    gathering = sum(step.stage in GATHERING for step in told)
    for number, step in enumerate(told, 1):
        _interruptible()
        try:
            done[step.name] = _step(desk, run, step, done, before.get(step.name))
        except NothingToLearn as error:  # one of several sources may be empty; that all are is found below
            if step.stage not in GATHERING or gathering + len(uploads.preferences) == 1:
                raise
            _say(desk, run, f"{step.name} has nothing: {error}", level="warn")
        if number == gathering:
            folders = [*done.values(), *uploads.preferences]
            _enough(desk, run, folders)
    if not gathering:
        _enough(desk, run, list(uploads.preferences))
    result = _result(done)
    return result | _promoted(desk, run, result) if order.promote else result


def _enough(desk: Desk, run: Run, folders: list[Path]) -> None:
    found = pipeline.enough(run.order, folders)
    _say(desk, run, f"{found.conversations} conversations to learn from, {found.preferences} preferences.")
    if run.order.until in {"gate", "publish"}:
        from train.gate import Gates

        wanted = stages.checked("gate", Gates, run.order.parameters.get("gate", {})).min_conversations
        held = found.held_out
        if held < wanted:
            text = f"About {held:.0f} conversations will be held out, and the gates want {wanted}: expect a block."
            _say(desk, run, text, level="warn")


def _step(desk: Desk, run: Run, step: Step, done: Mapping[str, Path], before: Path | None) -> Path:
    """Do one step, unless an earlier attempt did: that one's data are the run's, whatever was recorded since."""
    if before is not None and (before / stages.MANIFEST).exists():
        return before
    stage = pipeline.stage_of(step)
    chosen = pipeline.parameters(run.order, step, stage.parameters)
    read = {name: done[read] for name, read in step.reads.items() if read in done}
    inputs = pipeline.renumbered(read | dict(step.files))
    reused = False

    def began(folder: Path) -> None:
        nonlocal reused
        reused = (folder / stages.MANIFEST).exists()
        desk.tell("begin", run, step.name, str(folder.relative_to(desk.home)), folder.name.rpartition("-")[2])
        desk.follow(step.name, folder)
        print(f"== {step.name}: {folder}", flush=True)

    deadline = time.monotonic() + AWAY_S
    while True:
        try:
            with _gpus(desk, run, step, chosen) as own:
                folder = stages.run(stage, inputs=inputs, parameters=own, home=desk.home, began=began)
            break
        except Unavailable as error:  # of export and publish, which read and write PostgreSQL
            if time.monotonic() > deadline:
                raise
            _say(desk, run, f"{step.name} waits: {error}", level="warn")
            time.sleep(RETRY_S)
        finally:
            desk.follow(step.name, None)
    told = stages.manifest(folder)
    desk.tell("end", run, step.name, counts=told.counts, dropped=told.dropped, facts=told.facts, reused=reused)
    counted = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in told.counts.items())
    seconds = "done before" if reused else f"{told.seconds:.1f} s"
    _say(desk, run, f"{step.name}: {counted} ({seconds}).", dropped=dict(told.dropped))
    return folder


@contextlib.contextmanager
def _gpus(desk: Desk, run: Run, step: Step, chosen: Any) -> Iterator[Any]:
    """The parameters of a stage; those of tuning while serving lends it the GPUs that it needs and holds."""
    registry = Registry(desk.pool, desk.home)
    if step.stage != "tune" or chosen.gpu is False or not (lent := _lent(desk, run, registry, chosen)):
        yield chosen
        return
    try:
        yield chosen.model_copy(update={"gpu": False})  # by Ray's counting, which knows nothing of the loan
    finally:
        try:
            desk.ask(give_back(registry, lent))
            desk.tell("lend", run, {})
            _say(desk, run, f"{', '.join(lent)} is back on the GPUs.")
        except MindFuError as error:  # the trainer tries again: what was lent stands with the run
            _say(desk, run, f"The GPUs are not given back yet: {error}", level="warn")


def _lent(desk: Desk, run: Run, registry: Registry, chosen: Any) -> dict[str, int]:
    """What serving lends: nothing where it has nothing, or where GPUs are free."""
    if before := lent_to(run):  # to an earlier attempt
        return before
    members = desk.ask(registry.members())
    if not any(holding.layers for member in members for holding in member.models.values()):
        return {}
    with cluster.connected(desk.home):
        import ray

        there, free = (float(found.get("GPU", 0)) for found in (ray.cluster_resources(), ray.available_resources()))
    if there < chosen.workers or free >= chosen.workers:
        return {}
    lent = desk.ask(lend(registry))
    desk.tell("lend", run, lent)
    _say(
        desk,
        run,
        f"{', '.join(lent)} lends its GPUs to the training: meanwhile it answers on the CPU, on vLLM not at all.",
        level="warn",
    )
    return lent


def _result(done: Mapping[str, Path]) -> dict[str, JsonValue]:
    """What there is to say of a run that ended: the published name, the gates' verdict, the numbers of training."""
    result: dict[str, JsonValue] = {"folders": {name: folder.name for name, folder in done.items()}}
    if "tune" in done:
        tuned = stages.manifest(done["tune"])
        result |= {"trained_tokens": tuned.counts.get("train_tokens")}
        result |= {name: tuned.facts[name] for name in ("steps", "validation_loss") if name in tuned.facts}
    if "gate" in done:
        judged = stages.manifest(done["gate"]).facts
        result |= {"verdict": judged["verdict"], "reasons": judged["reasons"]}
    if "publish" in done:
        result |= {"name": stages.manifest(done["publish"]).facts["name"]}
    return result


def _promoted(desk: Desk, run: Run, result: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Let it answer, if its gates passed it. That they did not is no failure of the run."""
    name = result.get("name")
    if not isinstance(name, str):
        return {"promoted": False}
    if result.get("verdict") != "passed":
        reasons = result.get("reasons")
        told = "; ".join(map(str, reasons)) if isinstance(reasons, list) else ""
        _say(desk, run, f"{name} is not promoted: the gates blocked it: {told}", level="warn")
        return {"promoted": False}
    model, version = split_name(name)
    try:
        promoted = desk.ask(promote(Registry(desk.pool, desk.home), model, version, reason=f"the run {run.id}"))
    except NotPromoted as error:
        _say(desk, run, str(error), level="warn")
        return {"promoted": False}
    _say(desk, run, f"{name} answers for {model}, on {promoted.engines} replica(s).")
    return {"promoted": True}


def _uploads(desk: Desk, run: Run) -> Written:
    """The uploaded files of an order, written where stages can read them. Raises NotFound."""
    order, files = run.order, Uploads(desk.pool)
    conversations, preferences = list[Path](), list[Path]()

    def written(file_id: str) -> tuple[Path, bytes]:
        kept, data = desk.ask(files.content(run.tenant, file_id))
        suffix = "".join(Path(kept.name).suffixes[-2:]) or ".jsonl"
        path = desk.home / "datasets" / "uploads" / kept.id / f"file{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path, data

    for file_id in order.files:
        path, data = written(file_id)
        if (pairs := preferred(data)) is None:
            conversations.append(path)
        else:
            folder = path.parent / "preferences"
            folder.mkdir(exist_ok=True)
            lines.save(folder / pipeline.PREFERENCES, pairs)
            preferences.append(folder)
    trusted = _trusted(*written(order.trusted)) if order.trusted else None
    return Written(tuple(conversations), tuple(preferences), trusted)


def preferred(data: bytes) -> list[str] | None:
    """Preferences in OpenAI's form as lines of ours; None: the file holds none of them.

    Raises InvalidRequest, with the number of the line.
    """
    found: list[str] = []
    for text in data.decode("utf-8", "replace").splitlines():
        try:
            told = json.loads(text) if text.strip() else None
        except ValueError:
            return None  # convert says what is wrong with it
        if told is None:
            continue
        if not isinstance(told, dict) or "preferred_output" not in told:
            return None
        asked = told.get("input") or {}
        answers = {"chosen": told["preferred_output"], "rejected": told.get("non_preferred_output")}
        ours = {"prompt": asked.get("messages"), "tools": asked.get("tools") or [], **answers}
        found.append(lines.dump_preference(lines.parse_preference(json.dumps(ours))))
    return found or None


def _trusted(path: Path, data: bytes) -> Path:
    """Conversations of an uploaded file as lines of ours."""
    target = path.with_name("trusted.jsonl")
    texts = [text for text in data.decode("utf-8", "replace").splitlines() if text.strip()]
    lines.save(target, [lines.dump(lines.parse(text)) for text in texts])
    return target


def _stopped(desk: Desk, run: Run) -> int:
    """It was cancelled, here or elsewhere; or it is to go on somewhere else."""
    if desk.stopped == "lost":
        return 3
    if desk.stopped is None:  # SIGTERM: the server or the machine stops
        desk.tell("lose", run)
        return 3
    print("cancelled", flush=True)
    desk.tell("note", run, "The run was cancelled.", level="warn")
    desk.tell("finish", run, "cancelled")
    return 0


def _failed(desk: Desk, run: Run, error: str, code: str) -> int:
    print(error, flush=True)
    desk.tell("note", run, error, level="error")
    desk.tell("finish", run, "failed", error=error, code=code)
    return 1


def _say(desk: Desk, run: Run, text: str, *, level: str = "info", **data: JsonValue) -> None:
    print(text, flush=True)
    desk.tell("note", run, text, level=level, data=data)


def _interruptible() -> None:
    """Let SIGINT, which the desk sends, and SIGTERM end the stage. Before each: Ray Train leaves handlers behind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _numbers(told: Mapping[str, Any]) -> str:
    shown = [f"{name} {told[name]:.4g}" for name in ("loss", "eval_loss", "tokens_per_s") if name in told]
    return f"Step {told['step']:.0f} of {told['max_steps']:.0f}: {', '.join(shown)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "no message"


def _log_to(file: Path) -> None:
    """What this process and those that it starts print goes to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as kept:
        os.dup2(kept.fileno(), 1)
        os.dup2(kept.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


if __name__ == "__main__":
    main()
