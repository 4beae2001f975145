"""The sandbox of the tools against every trick that we know, as root and as somebody without rights, with openat2 and
without it.
"""

import errno
import os
import pickle
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import Misconfigured
from app.tools import files
from app.tools.beneath import has_openat2, step
from app.tools.context import Context
from app.tools.failures import ToolFailed
from app.tools.network import Network
from app.tools.sandbox import PROTECTED, Sandbox
from app.unprivileged import nobody

SECRET = "the secret"
ROOT = os.geteuid() == 0


class Place:
    """A workspace with files, a folder of secrets beside it, and the context of a tool that may work in the first."""

    def __init__(self, base: Path, *, kernel: bool) -> None:
        self.base, self.work, self.outside = base, base / "work", base / "outside"
        for folder in (self.work, self.outside, self.work / "sub", self.work / "private"):
            folder.mkdir()
        (self.outside / "secret.txt").write_text(SECRET)
        (self.work / "private" / "key.txt").write_text(SECRET)
        (self.work / "notes.txt").write_text("one\ntwo\n")
        (self.work / "sub" / "deep.txt").write_text("deep")
        sandbox = Sandbox([self.work], protected=[self.work / "private"], kernel=kernel)
        self.context = Context(sandbox, Network(), find, max_file_bytes=1000, timeout_s=5.0)

    def path(self, name: str) -> str:
        return str(self.work / name)

    def refused(self, tool: Callable[..., Any], *args: Any, **more: Any) -> str:
        """Why a tool refuses."""
        with pytest.raises(ToolFailed) as refusal:
            tool(self.context, *args, **more)
        assert SECRET not in str(refusal.value)
        return str(refusal.value)


async def find(*_: object) -> Any:
    raise AssertionError


@pytest.fixture(params=[True, False], ids=["openat2", "component-wise"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """In a folder that anybody may enter, all of it nobody's where we are root."""
    if request.param and not has_openat2():
        pytest.skip("this kernel has no openat2")
    base = Path(tempfile.mkdtemp(prefix="mindfu-sandbox-")).resolve()
    base.chmod(0o755)
    yield Place(base, kernel=request.param)
    shutil.rmtree(base)


@pytest.fixture(params=["root", "nobody"])
def attack(request: pytest.FixtureRequest, place: Place) -> Callable[[Callable[[Place], None]], None]:
    """Runs an attack in a child process of that user."""
    if not ROOT and request.param == "root":
        pytest.skip("only root can be root")
    user = nobody() if ROOT and request.param == "nobody" else None
    if user:
        for path in (place.base, *place.base.rglob("*")):
            os.chown(path, *user, follow_symlinks=False)

    def run(attack: Callable[[Place], None]) -> None:
        reader, writer = os.pipe()
        if not (child := os.fork()):
            failure: object = None
            try:
                if user:
                    os.setgroups([])
                    os.setgid(user.gid)
                    os.setuid(user.uid)
                attack(place)
            except BaseException as error:  # noqa: BLE001 – told to the parent
                failure = f"{type(error).__name__}: {error}"
            os.write(writer, pickle.dumps(failure))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            failure = pickle.loads(told.read())
        os.waitpid(child, 0)
        assert failure is None, failure

    return run


def test_a_path_outside_of_the_roots_is_refused_by_name(attack):
    """With the folders that are allowed; the same for relative paths, and for what is no path at all."""

    def tricks(place: Place) -> None:
        for path in (str(place.outside / "secret.txt"), str(place.work) + "x/secret.txt", str(place.base)):
            assert "is not in an allowed folder" in place.refused(files.read_file, path)
        assert f"beneath {place.work}" in place.refused(files.read_file, "notes.txt")
        for path in ("\0", f"{place.work}/\0", "/" + "x" * 5000, f"{place.work}/\udc80", "~/x", "", "C:\\x"):
            place.refused(files.read_file, path)
        assert "name is too long" in place.refused(files.read_file, place.path("x" * 300))

    attack(tricks)


def test_dots_lead_nowhere(attack):
    """In whatever place and however often."""

    def tricks(place: Place) -> None:
        for path in ("../outside/secret.txt", "sub/../../outside/secret.txt", "sub/..", "x/../../../../etc/passwd"):
            assert "holds '..'" in place.refused(files.read_file, place.path(path))
            assert "holds '..'" in place.refused(files.write_file, place.path(path), ["x"])
        assert files.read_file(place.context, f"//{place.work}/./sub//deep.txt")["content"] == "deep"

    attack(tricks)


def test_symbolic_links_are_never_followed(attack):
    """Neither as the file nor as a folder on the way; not to be read, written, moved over, copied, or looked at."""

    def tricks(place: Place) -> None:
        (place.work / "link.txt").symlink_to(place.outside / "secret.txt")
        (place.work / "links").symlink_to(place.outside)
        (place.work / "inner.txt").symlink_to("notes.txt")
        for name in ("link.txt", "links/secret.txt", "inner.txt"):
            path = place.path(name)
            for tool in (files.read_file, files.get_file_info, files.delete_file):
                assert "symbolic link" in place.refused(tool, path) or "no folder" in place.refused(tool, path)
            place.refused(files.write_file, path, ["x"])
            place.refused(files.copy_file, path, place.path("copy.txt"))
            place.refused(files.copy_file, place.path("notes.txt"), path, overwrite=True)
            place.refused(files.move_file, path, place.path("moved.txt"))
            place.refused(files.move_file, place.path("notes.txt"), path, overwrite=True)
        place.refused(files.create_directory, place.path("links/new"))
        place.refused(files.list_contents, place.path("links"))
        assert (place.outside / "secret.txt").read_text() == SECRET
        assert [path.name for path in place.outside.iterdir()] == ["secret.txt"]
        assert not (place.work / "copy.txt").exists()

    attack(tricks)


def test_a_walk_follows_no_link(attack):
    """What is found, searched, added up or deleted lies in the folder itself, also where links go round in circles."""

    def tricks(place: Place) -> None:
        (place.work / "links").symlink_to(place.outside)
        (place.work / "sub" / "round").symlink_to(place.work)
        (place.work / "sub" / "secret.txt").symlink_to(place.outside / "secret.txt")
        work = str(place.work)
        assert files.search_files(place.context, work, "secret.txt")["files"] == [place.path("sub/secret.txt")]
        assert files.find_in_files(place.context, work, SECRET)["count"] == 0
        size = files.calculate_directory_size(place.context, work)
        assert size == {"size_bytes": 12, "size_human": "12 B", "files_not_read": 1}
        files.delete_file(place.context, place.path("sub"), recursive=True)
        assert not (place.work / "sub").exists()
        assert (place.outside / "secret.txt").read_text() == SECRET
        assert (place.work / "notes.txt").exists()

    attack(tricks)


def test_the_magic_links_of_proc_lead_nowhere(attack):
    """Neither by their own paths nor by links to them."""

    def tricks(place: Place) -> None:
        for path in ("/proc/self/root/etc/passwd", "/proc/self/cwd", "/PROC/self/environ", "/dev/fd/0"):
            assert "is protected" in place.refused(files.read_file, path)
        with (place.outside / "secret.txt").open() as secret:
            for number, target in enumerate(("/proc/self/root", "/proc/self/cwd", f"/proc/self/fd/{secret.fileno()}")):
                (place.work / f"magic{number}").symlink_to(target)
                place.refused(files.read_file, place.path(f"magic{number}"))
                place.refused(files.read_file, place.path(f"magic{number}{place.outside}/secret.txt"))

    attack(tricks)


def test_a_file_with_another_name_is_refused(attack):
    """A hard link is the file itself: the sandbox cannot tell where its other name is."""

    def tricks(place: Place) -> None:
        os.link(place.outside / "secret.txt", place.path("hard.txt"))
        for tool in (files.read_file, files.get_file_info, files.delete_file):
            assert "has 2 names" in place.refused(tool, place.path("hard.txt"))
        place.refused(files.write_file, place.path("hard.txt"), ["x"])
        place.refused(files.copy_file, place.path("hard.txt"), place.path("copy.txt"))
        assert files.find_in_files(place.context, str(place.work), SECRET)["files_not_read"] == 2  # and private/
        assert (place.outside / "secret.txt").read_text() == SECRET

    attack(tricks)


def test_protected_paths_are_refused_in_every_spelling(attack):
    """Those of the system, and those of the settings though they lie in an allowed folder."""

    def tricks(place: Place) -> None:
        for path in ("/", "//", *PROTECTED, "/etc/passwd", "/ETC/passwd", "//etc//passwd", "/./etc/passwd"):
            assert "is protected" in place.refused(files.read_file, path)
            assert "is protected" in place.refused(files.delete_file, path, recursive=True)
        for path in ("C:\\Windows", "c:\\program files (x86)\\x"):
            assert "is protected" in place.refused(files.read_file, path)
        for name in ("private", "private/key.txt", "PRIVATE/key.txt", "./private//key.txt"):
            assert "is protected" in place.refused(files.read_file, place.path(name))
        assert files.find_in_files(place.context, str(place.work), SECRET) == {
            "matches": [], "count": 0, "files_not_read": 1,
        }  # fmt: skip

    attack(tricks)


def test_what_is_protected_is_known_by_itself_and_not_by_its_name(attack):
    """Renamed after it was protected, it stays so: as on a disk that takes upper and lower case for the same."""

    def tricks(place: Place) -> None:
        with place.context.sandbox.folder(str(place.work)) as held:
            (place.work / "private").rename(place.work / "other")
            with pytest.raises(ToolFailed, match="is protected"), held.step("other"):
                pass

    attack(tricks)


def test_what_holds_something_protected_stays_where_it_is(attack):
    """Else its path would protect nothing any more."""

    def tricks(place: Place) -> None:
        (place.work / "box").mkdir()
        (place.work / "private").rename(place.work / "box" / "private")
        sandbox = Sandbox([place.work], protected=[place.work / "box" / "private"])
        place.context = Context(sandbox, Network(), find)
        for tool, more in ((files.move_file, (place.path("away"),)), (files.delete_file, (True,))):
            assert "stays where it is" in place.refused(tool, place.path("box"), *more)
        assert "can be neither" in place.refused(files.delete_file, str(place.work), recursive=True)
        assert (place.work / "box" / "private" / "key.txt").exists()

    attack(tricks)


def test_nothing_but_files_and_folders_is_opened(attack):
    """A FIFO without a writer does not hold the tool, a socket and a device are no files."""

    def tricks(place: Place) -> None:
        os.mkfifo(place.path("fifo"))
        started = time.monotonic()
        assert "neither a file nor a folder" in place.refused(files.read_file, place.path("fifo"))
        assert time.monotonic() - started < 1
        os.chdir(place.work)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
        assert "neither a file nor a folder" in place.refused(files.read_file, place.path("socket"))
        if os.geteuid() == 0:
            try:
                os.mknod(place.path("zero"), 0o20666, os.makedev(1, 5))
            except PermissionError:
                return
            place.refused(files.read_file, place.path("zero"))

    attack(tricks)


def test_binary_and_huge_files_are_refused(attack):
    """However they claim to be: a sparse file of a terabyte, a file without a size in its status, zeros in text."""

    def tricks(place: Place) -> None:
        (place.work / "binary").write_bytes(b"\x7fELF\xff\xfe")
        (place.work / "zeros").write_bytes(b"a\0b")
        with (place.work / "sparse").open("wb") as file:
            file.truncate(2**40)
        assert "no text in UTF-8" in place.refused(files.read_file, place.path("binary"))
        assert "binary" in place.refused(files.read_file, place.path("zeros"))
        assert "at most 1000 are allowed" in place.refused(files.read_file, place.path("sparse"))
        assert "at most 1000 are allowed" in place.refused(files.copy_file, place.path("sparse"), place.path("copy"))
        assert "at most 1000 are allowed" in place.refused(files.write_file, place.path("new"), ["x" * 2000])
        assert "zero character" in place.refused(files.write_file, place.path("new"), ["\0"])
        assert not (place.work / "new").exists()
        assert files.find_in_files(place.context, str(place.work), "a")["files_not_read"] == 4

    attack(tricks)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_no_race_between_check_and_use_can_be_won(attack, what):
    """While another process exchanges a name for a link to a secret and back, nothing shows or reaches the secret."""

    def tricks(place: Place) -> None:
        base = place.work / "race"
        base.mkdir()
        (base / "secret.txt").write_text("harmless")
        target = base if what == "folder" else base / "secret.txt"
        link, real = place.work / "link", place.work / "real"
        if not (racer := os.fork()):
            while True:
                link.symlink_to(place.outside if what == "folder" else place.outside / "secret.txt")
                target.rename(real)
                link.rename(target)
                target.unlink()
                real.rename(target)
        read = missed = 0
        started = time.monotonic()
        try:
            while time.monotonic() < started + 0.2 or (not (read and missed) and time.monotonic() < started + 20):
                try:
                    assert files.read_file(place.context, str(base / "secret.txt"))["content"] in {"harmless", "new\n"}
                    read += 1
                    if what == "folder":
                        files.write_file(place.context, str(base / "secret.txt"), ["new"])
                        files.create_directory(place.context, str(base / "made"))
                        files.delete_file(place.context, str(base / "made"))
                except ToolFailed:
                    missed += 1
        finally:
            os.kill(racer, signal.SIGKILL)
            os.waitpid(racer, 0)
        assert read
        assert missed
        assert (place.outside / "secret.txt").read_text() == SECRET
        assert [path.name for path in place.outside.iterdir()] == ["secret.txt"]

    attack(tricks)


def test_another_file_system_is_another_folder(place):
    """What is mounted beneath a root was not allowed with it."""
    here = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="proc") as refusal:
            os.close(step(here, "proc", os.O_RDONLY, kernel=place.context.sandbox.kernel))
    finally:
        os.close(here)
    assert refusal.value.errno == errno.EXDEV


@pytest.mark.parametrize("root", ["/", "/etc", "/proc/self", "/sbin"])
def test_a_root_that_is_protected_is_refused_at_start(root):
    """Naming the setting."""
    with pytest.raises(Misconfigured, match=r"tools\.roots"):
        Sandbox([Path(root)])


def test_the_home_is_protected_but_for_its_workspace(tmp_path):
    """Keys and conversations lie beside it."""
    work = tmp_path / "workspace"
    work.mkdir()
    with pytest.raises(Misconfigured, match="is protected"):
        Sandbox([work], protected=[tmp_path])
    sandbox = Sandbox([work], protected=[tmp_path], lent=[work])
    with sandbox.open(str(work)) as held:
        assert held.is_folder
    with pytest.raises(ToolFailed, match="is protected"), sandbox.open(str(tmp_path / "keys")):
        pass
