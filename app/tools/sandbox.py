"""The folders that tools may work in, and what they may not touch even there.

    sandbox = Sandbox([workspace], protected=[home])
    with sandbox.open("/…/workspace/notes.txt") as held: ...      # held.fd, held.stat
    with sandbox.parent("/…/workspace/new.txt") as (folder, name): ...

Nothing is decided by a path and then done by it: a path is walked by descriptors (see beneath.py), and what is checked
is what was opened. Links are never followed, and a file with a second name is refused: the other one may be anywhere.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.errors import Misconfigured
from app.settings import ToolSettings
from app.tools.beneath import Identity, identity, step
from app.tools.failures import ToolFailed

PROTECTED = ("/etc", "/proc", "/sbin", "/boot", "/sys", "/dev")
WINDOWS = ("c:\\windows", "c:\\program files", "c:\\program files (x86)")
MOST_PATH = 4096  # characters
REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.ELOOP: "it is, or leads through, a symbolic link, which is not followed",
    errno.EXDEV: "it lies on another file system than the allowed folder",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EACCES: "the server may not",
    errno.EPERM: "the server may not",
    errno.ENXIO: "it is neither a file nor a folder",
    errno.EEXIST: "it exists already",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the file system cannot be written to",
    errno.EISDIR: "it is a folder",
}


@dataclass(frozen=True)
class Held:
    """A file or folder, held open. path: as it was asked for. closed: what must not be touched, by identity."""

    fd: int
    path: str
    stat: os.stat_result
    closed: frozenset[Identity]
    kernel: bool | None = None

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.stat.st_mode)

    @contextmanager
    def step(self, name: str) -> "Iterator[Held]":
        """What is called so in this folder. Raises ToolFailed where it may not be touched, OSError where it is gone."""
        path = f"{self.path}/{name}"
        fd = step(self.fd, name, os.O_RDONLY, kernel=self.kernel)
        try:
            held = Held(fd, path, os.fstat(fd), self.closed, self.kernel)
            _check(held)
            yield held
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        """In this folder, sorted."""
        return sorted(name for name in os.listdir(self.fd) if _sayable(name))  # noqa: PTH208 – of a descriptor

    def look(self, name: str) -> os.stat_result | None:
        """Of the name itself, a link's too. None: there is none."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None


class Sandbox:
    """roots: absolute folders that exist. protected: never touched, even beneath a root. kernel: see beneath.step.

    A root may lie beneath a protected folder only where `lent` says so: the workspace in our own home.
    Raises Misconfigured for a root that is protected, or the whole file system.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        *,
        protected: Iterable[Path] = (),
        lent: Sequence[Path] = (),
        kernel: bool | None = None,
    ) -> None:
        self.roots = tuple(root.resolve() for root in roots)
        given = (*(Path(path) for path in PROTECTED), *protected)
        self.protected = tuple(dict.fromkeys(path for one in given for path in (one.absolute(), one.resolve())))
        self.kernel = kernel
        lent = tuple(root.resolve() for root in lent)
        for root in self.roots:
            _require_allowed(root, () if root in lent else self.protected)

    @contextmanager
    def open(self, path: str) -> Iterator[Held]:
        """A file or folder. Raises ToolFailed where it is none, or not to be touched."""
        root, parts = self._located(path)
        with _told(path), self._walked(root, parts) as held:
            yield held

    @contextmanager
    def file(self, path: str, most: int) -> Iterator[Held]:
        """A file. Raises ToolFailed, also for one over `most` bytes."""
        with self.open(path) as held:
            if held.is_folder:
                raise ToolFailed(f"'{path}' is a folder, not a file.")
            if held.stat.st_size > most:
                raise ToolFailed(f"'{path}' has {held.stat.st_size} bytes, at most {most} are allowed.")
            yield held

    @contextmanager
    def folder(self, path: str) -> Iterator[Held]:
        """A folder. Raises ToolFailed."""
        with self.open(path) as held:
            if not held.is_folder:
                raise ToolFailed(f"'{path}' is a file, not a folder.")
            yield held

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[Held, str]]:
        """The folder that something is or will be in, and its name there. Raises ToolFailed, for a root too."""
        root, parts = self._located(path)
        if not parts:
            raise ToolFailed(f"'{path}' is an allowed folder itself: it can be neither made, moved nor deleted.")
        with _told(path), self._walked(root, parts[:-1]) as held:
            if not held.is_folder:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            yield held, parts[-1]

    def movable(self, held: Held) -> None:
        """That nothing protected, and no root, lies beneath. Raises ToolFailed."""
        fixed = {found for path in (*self.protected, *self.roots) for found in _identities((path, *path.parents))}
        if identity(held.stat) in fixed:
            raise ToolFailed(f"'{held.path}' holds a protected or an allowed folder: it stays where it is.")

    def _located(self, path: str) -> tuple[Path, tuple[str, ...]]:
        """The root of a path, and the names from there on."""
        if not _sayable(path) or "\0" in path or len(path) > MOST_PATH:
            raise ToolFailed("The path holds characters that no path has, or is too long.")
        if path.lower().startswith(WINDOWS):
            raise ToolFailed(f"'{path}' is protected.")
        if not path.startswith("/"):
            raise ToolFailed(f"'{path}' is not absolute. {self._allowed()}")
        pure = PurePosixPath("/" + path.lstrip("/"))
        if ".." in pure.parts:
            raise ToolFailed(f"'{path}' holds '..': give the path without it.")
        if pure == PurePosixPath("/"):
            raise ToolFailed(f"'{path}' is protected. {self._allowed()}")
        roots = sorted((root for root in self.roots if pure.is_relative_to(root)), key=lambda root: -len(root.parts))
        folded = _folded(pure)
        beneath_root = len(roots[0].parts) if roots else 0
        if any(
            _beneath(folded, _folded(PurePosixPath(one))) and len(one.parts) > beneath_root for one in self.protected
        ):
            raise ToolFailed(f"'{path}' is protected.")
        if not roots:
            raise ToolFailed(f"'{path}' is not in an allowed folder. {self._allowed()}")
        return roots[0], pure.relative_to(roots[0]).parts

    def _allowed(self) -> str:
        return f"Allowed are absolute paths beneath {', '.join(map(str, self.roots))}."

    @contextmanager
    def _walked(self, root: Path, parts: Sequence[str]) -> Iterator[Held]:
        closed = frozenset(_identities(self.protected))
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            held = Held(fd, str(root), os.fstat(fd), closed, self.kernel)
            for name in parts:
                below = step(fd, name, os.O_RDONLY, kernel=self.kernel)
                os.close(fd)
                fd = below
                held = Held(fd, f"{held.path}/{name}", os.fstat(fd), closed, self.kernel)
                _check(held)
            yield held
        finally:
            os.close(fd)


def shared(settings: ToolSettings, home: Path) -> Sandbox | None:
    """The sandbox of all tenants, where `tools.roots` names folders. Raises Misconfigured."""
    for root in settings.roots:
        if not root.is_absolute() or not root.is_dir():
            problem = f"'{root}' is no folder with an absolute path"
            raise Misconfigured("tools.roots", problem, "Make it, or name another one.")
    return Sandbox(settings.roots, protected=(home, *settings.protected)) if settings.roots else None


def workspace(settings: ToolSettings, home: Path, tenant: str) -> Sandbox:
    """The sandbox of one tenant, beneath the home folder. It is made where it is not there."""
    root = home / "workspace" / tenant
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Sandbox((root,), protected=(home, *settings.protected), lent=(root,))


def _check(held: Held) -> None:
    """That what was opened may be touched. Raises ToolFailed."""
    if identity(held.stat) in held.closed:
        raise ToolFailed(f"'{held.path}' is protected.")
    if held.is_folder:
        return
    if not stat.S_ISREG(held.stat.st_mode):
        raise ToolFailed(f"'{held.path}' is neither a file nor a folder.")
    if held.stat.st_nlink > 1:
        raise ToolFailed(f"'{held.path}' has {held.stat.st_nlink} names (hard links); only files with one are touched.")


@contextmanager
def _told(path: str) -> Iterator[None]:
    """The operating system's errors as the model's."""
    try:
        yield
    except OSError as error:
        raise ToolFailed(f"'{path}': {REASONS.get(error.errno or 0, error.strerror or 'it failed')}.") from error


def _identities(paths: Iterable[Path]) -> Iterator[Identity]:
    for path in paths:
        try:
            yield identity(path.stat())
        except OSError:  # not there, so nobody can get there
            continue


def _require_allowed(root: Path, protected: Iterable[Path]) -> None:
    remedy = "Name a folder for the tools alone."
    if root == Path("/"):
        raise Misconfigured("tools.roots", "the whole file system cannot be allowed", remedy)
    if taken := next((path for path in protected if root.is_relative_to(path)), None):
        raise Misconfigured("tools.roots", f"'{root}' lies in '{taken}', which is protected", remedy)


def _folded(path: PurePosixPath) -> tuple[str, ...]:
    return tuple(part.casefold() for part in path.parts)


def _beneath(path: Sequence[str], folder: Sequence[str]) -> bool:
    return tuple(path[: len(folder)]) == tuple(folder)


def _sayable(name: str) -> bool:
    """Whether it is whole UTF-8: other names cannot be told in JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
