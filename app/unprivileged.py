"""Give up root in a child process, for programs that refuse to run as root. PostgreSQL does.

A program that another user runs must still get to its files, and the folders above them may be closed to that user
(`/root` is, and so is every folder that `mktemp -d` makes). Rather than opening folders that are not ours, the child
then keeps the one capability that walks through closed folders: CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where a
container withholds the first. Linux only; where neither is left, start-up refuses and says which folder is closed.
"""

import ctypes
import os
import pwd
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from app.errors import Misconfigured

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # linux/capability.h
CAPABILITY_VERSION_3 = 0x20080522
PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 8, 47, 2  # linux/prctl.h


class User(NamedTuple):
    """Numeric ids of an operating system user."""

    uid: int
    gid: int


def nobody() -> User:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as error:
        remedy = "Run MindFu as an ordinary user, or set MINDFU_POSTGRES_URL."
        raise Misconfigured(
            "MINDFU_HOME", "PostgreSQL may not run as root, and no user `nobody` exists", remedy
        ) from error
    return User(entry.pw_uid, entry.pw_gid)


def give_up_root(user: User, paths: Sequence[Path]) -> Callable[[], None]:
    """What a child of a root process runs before exec, so that its program runs as `user` and reaches `paths`.

    Raises Misconfigured where a folder on the way is closed and no capability is left to pass it.
    """
    closed = next((folder for path in paths for folder in _ancestors(path) if _closed(folder)), None)
    capability = None if closed is None else _walking_capability(closed)

    def drop() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if capability is not None:
            _check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setgroups([])
        os.setgid(user.gid)
        os.setuid(user.uid)
        if capability is not None:
            header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
            effective_permitted_inheritable = (ctypes.c_uint32 * 6)(*[1 << capability] * 3, 0, 0, 0)
            _check(libc.capset(header, effective_permitted_inheritable))
            _check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))

    return drop


def _ancestors(path: Path) -> list[Path]:
    return [folder for folder in reversed(path.resolve().parents) if folder.exists()]


def _closed(folder: Path) -> bool:
    return not folder.stat().st_mode & stat.S_IXOTH


def _walking_capability(closed: Path) -> int:
    held = _held_capabilities()
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if held >> capability & 1:
            return capability
    mode = closed.stat().st_mode & 0o777
    raise Misconfigured(
        "MINDFU_HOME",
        f"PostgreSQL may not run as root, and {closed} is closed to other users (mode {mode:o})",
        f"Put the home and the installation in folders that other users may enter, or run `chmod o+x {closed}`, "
        "or run MindFu as an ordinary user, or set MINDFU_POSTGRES_URL.",
    )


def _held_capabilities() -> int:
    """Those that this process may hand to a child, as a bit mask."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:  # not Linux
        return 0
    masks = {line[:6]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")}
    return masks["CapPrm"] & masks["CapBnd"]


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
