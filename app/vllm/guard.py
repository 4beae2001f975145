"""Ends processes with the one that started them, however that ended: by SIGKILL, too, or for want of memory.

    guard = Guard(children)     # psutil.Process
    ... guard.close()           # they end by themselves now

vLLM's engine is a process of its own, which would stay with its GPU's memory. The guard is a third one, that waits for
the end of a pipe which only its parent can write to.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

TOLERANCE_S = 30.0  # processes disagree on when the machine was started, and count from there


class Guard:
    """Watches over some processes from now on. They are told by their start as well, for numbers come again."""

    def __init__(self, children: Sequence[psutil.Process]) -> None:
        told = [f"{child.pid}:{child.create_time()}" for child in children]
        command = [sys.executable, "-P", __file__, *told]  # a file, wherever the package was found
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - our own

    def close(self) -> None:
        """End what is left of them, and the watch. A second call does nothing."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def watch(told: Sequence[str]) -> None:
    """Wait for the end of the parent, then kill those that still run."""
    sys.stdin.buffer.read()
    for one in told:
        pid, started = one.split(":")
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(started)) < TOLERANCE_S:
                process.kill()


def children() -> list[psutil.Process]:
    """The processes that this one has started and that run, but for what tidies up behind multiprocessing."""
    return [child for child in psutil.Process().children() if _works(child)]


def _works(child: psutil.Process) -> bool:
    try:
        return not any("resource_tracker" in word for word in child.cmdline())
    except psutil.NoSuchProcess:  # it has ended, and nobody asked yet how
        return False


if __name__ == "__main__":
    watch(sys.argv[1:])
