"""The queue of training runs, for whoever works on it: `mindfu train` where no server runs, else the trainer.

    queue = Queue(runs, Children(home))
    while ...: await queue.once()       # every second or two

One run is worked on at a time, in a process of its own (train/run.py). Where that process is gone the run is begun
again, and goes on where it ended; what kills its process again and again fails.
"""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from app.errors import MindFuError
from app.runs import LIVE_S, MOST_ATTEMPTS, Run, Runs

Alive = Literal["alive", "gone", "unknown"]
MODULE = "train.run"
END_S = 5.0  # that a process may take to end behind its run


class Launcher(Protocol):
    """Starts processes that work on runs, and knows how they are."""

    async def start(self, run: Run) -> None:
        """Begin an attempt at a run. Raises MindFuError where it cannot."""

    async def state(self, run: Run) -> Alive:
        """Of the attempt's process. unknown: somebody else's."""

    async def ending(self, run: Run) -> str:
        """How the attempt's process, which is gone, ended: for people."""

    async def stop(self, run: Run) -> None:
        """Kill the attempt's process, which does not listen."""


class Queue:
    """Works on the runs of one database. live_s: how long another worker's process may be silent."""

    def __init__(self, runs: Runs, launcher: Launcher, *, live_s: float = LIVE_S) -> None:
        self._runs, self._launcher, self._live_s = runs, launcher, live_s

    async def once(self) -> Run | None:
        """Begin the next run, if it is time. Returns what is worked on now. Raises MindFuError; call it again then."""
        running = await self._runs.running()
        if running is not None:
            state = await self._launcher.state(running)
            if state == "alive":  # though it may be silent for a while, where the machine is busy
                if running.cancelling and _silent(running) > self._live_s:
                    await self._launcher.stop(running)
                return running
            if state == "gone":
                ending = await self._launcher.ending(running)
                if await self._runs.lose(running):
                    await self._runs.note(running, f"The process that worked on it is gone: {ending}", level="warn")
        run = await self._runs.claim(self._live_s)
        if run is None:
            return running
        if run.cancelling:
            await self._runs.finish(run, "cancelled")
            return None
        if run.begun > MOST_ATTEMPTS:
            problem = f"The process that works on it ended {MOST_ATTEMPTS} times without a word. See its logs."
            await self._runs.finish(run, "failed", error=problem, code="killed")
            return None
        try:
            await self._launcher.start(run)
        except MindFuError as error:
            await self._tell(run, f"It cannot be started yet: {error}")
            await self._runs.unstart(run)
            raise
        return run

    async def _tell(self, run: Run, text: str) -> None:
        """Once, however often it is so."""
        if text not in {event.text for event in await self._runs.events(run.id, limit=1)}:
            await self._runs.note(run, text, level="warn")


class Children:
    """Processes of this machine, which outlive us."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._child: tuple[str, int, subprocess.Popen[bytes]] | None = None

    async def start(self, run: Run) -> None:
        """Begin an attempt at a run."""
        process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own arguments; it returns at once
            [sys.executable, "-m", MODULE, run.id, str(run.attempt)],
            env={**os.environ, "MINDFU_HOME": str(self._home)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches us alone
        )
        self._child = run.id, run.attempt, process

    async def state(self, run: Run) -> Alive:
        """Of the attempt's process."""
        if self._child is None or self._child[:2] != (run.id, run.attempt):
            return "unknown"
        return "alive" if self._child[2].poll() is None else "gone"

    async def ending(self, run: Run) -> str:
        """Its exit status, or the signal that killed it."""
        if self._child is None or self._child[:2] != (run.id, run.attempt):
            return "nothing is known of it"
        status = self._child[2].poll()
        return f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"

    async def stop(self, run: Run) -> None:
        """Kill the attempt's process."""
        if await self.state(run) == "alive" and self._child is not None:
            os.killpg(self._child[2].pid, signal.SIGKILL)

    def close(self) -> None:
        """Let a run that has not ended go on elsewhere, or later."""
        if self._child is not None:
            process = self._child[2]
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                process.wait()


def _silent(run: Run) -> float:
    """For how many seconds nobody said that it goes on."""
    return (datetime.now(UTC) - run.seen_at).total_seconds() if run.seen_at else 0.0
