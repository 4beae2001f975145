"""Turns on local disk, for as long as PostgreSQL is away: one file each, durable before `add` returns.

The names order by time, so that replaying them in order never records a turn before its parent. The processes of one
node share the folder; whoever replays holds its lock. A node that is lost with its disk loses what was not replayed.
A file that cannot be read, or whose turn PostgreSQL rejects, is renamed to `<name>.bad` and kept for a person to see.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.turns import Turn

logger = logging.getLogger(__name__)


class Spool:
    """One folder of waiting turns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._last_ns = 0

    def pending(self) -> int:
        """How many turns wait, those of other processes included."""
        return sum(1 for _ in self.folder.glob("*.json"))

    def waiting(self) -> list[Path]:
        """The files of the waiting turns, the oldest first."""
        return sorted(self.folder.glob("*.json"))

    def add(self, turn: Turn) -> None:
        """Keep a turn. Returns when it is on the disk."""
        self._last_ns = max(self._last_ns + 1, time.time_ns())  # a clock that was set back changes no order here
        path = self.folder / f"{self._last_ns:020d}-{turn.id}.json"
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("xb") as file:
            file.write(turn.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        self._sync_folder()

    def read(self, path: Path) -> Turn | None:
        """A waiting turn. None: the file made no sense, and was set aside."""
        try:
            return Turn.model_validate_json(path.read_bytes())
        except ValueError as error:
            self.set_aside(path, error)
            return None

    def set_aside(self, path: Path, error: Exception) -> None:
        """Take a file out of the queue for good, and say so."""
        logger.error("A turn is set aside and not recorded: %s.bad: %s", path, error)
        path.rename(path.with_name(f"{path.name}.bad"))

    @contextmanager
    def replaying(self) -> Iterator[bool]:
        """Hold the lock of whoever replays. False: another process does."""
        with (self.folder / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
