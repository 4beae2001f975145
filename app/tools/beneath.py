"""Open one name in a folder that is held open, and never anything else.

Paths are walked one name at a time by descriptors, so whatever is renamed, replaced or linked meanwhile, a step ends in
that folder or fails. Linux does it with openat2 (5.6): no symbolic link, no magic link of /proc, no other file system.
Elsewhere, and where a container withholds that call, O_NOFOLLOW and a comparison of devices do.
"""

import ctypes
import errno
import os
from functools import cache
from typing import NamedTuple

OPENAT2 = 437  # the number of the system call, on every architecture
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8  # linux/openat2.h
RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO or a device must not hold us


class Identity(NamedTuple):
    """What tells a file or folder, whatever it is called."""

    device: int
    inode: int


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def identity(status: os.stat_result) -> Identity:
    """Of what was asked about."""
    return Identity(status.st_dev, status.st_ino)


def step(folder: int, name: str, flags: int, mode: int = 0, *, kernel: bool | None = None) -> int:
    """The descriptor of `name` in `folder`. name: one component, neither `.` nor `..`. kernel: None: where it can.

    Raises OSError; ELOOP for a link, EXDEV for another file system.
    """
    assert name not in {"", ".", ".."}
    assert "/" not in name
    if has_openat2() if kernel is None else kernel:
        return _openat2(folder, name, flags | ALWAYS, mode)
    opened = os.open(name, flags | ALWAYS, mode, dir_fd=folder)
    if os.fstat(opened).st_dev != os.fstat(folder).st_dev:
        os.close(opened)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    return opened


@cache
def has_openat2() -> bool:
    """Whether the kernel has the call and lets us make it."""
    here = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(_openat2(here, ".", os.O_RDONLY | os.O_CLOEXEC, 0))
    except (OSError, AttributeError):  # not Linux, older, or withheld by a container
        return False
    finally:
        os.close(here)
    return True


def _openat2(folder: int, name: str, flags: int, mode: int) -> int:
    how = _How(flags, mode, RESOLVE)
    libc = ctypes.CDLL(None, use_errno=True)
    opened: int = libc.syscall(OPENAT2, folder, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
    if opened < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return opened
