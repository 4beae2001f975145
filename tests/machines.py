"""Machines for a cluster, on this one: each has its own network, processes, /tmp and home folder, and an SSH server.

    with machines(("head", "one"), folder) as found:
        found["one"].run("ray --version")
        found["one"].cut()                     # its network
        found["one"].kill()                    # its power

They are Linux namespaces, joined by a bridge, which needs root. What is installed is the same on all of them.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

BRIDGE, NETWORK = "mindfu0", "10.77.0"
DESK = f"{NETWORK}.254"  # this machine, as they see it
HOME = Path("~root").expanduser()  # each machine has its own there
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
TOOLS = ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "/usr/sbin/sshd", "rsync")
APART = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
BOOT = """set -e
mount --make-rprivate /
mkdir -p {folder}/home && mount -t tmpfs -o size=2g tmpfs {folder}/home && mkdir {folder}/home/up {folder}/home/work
mount -t overlay -o lowerdir={root},upperdir={folder}/home/up,workdir={folder}/home/work overlay {root}
mount -t tmpfs -o size=2g tmpfs /tmp
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount -t tmpfs tmpfs /run && mkdir /run/sshd
hostname {name}
until ip address show eth0 2> /dev/null | grep -q {address}; do sleep 0.05; done
exec /usr/sbin/sshd -D -f /dev/null -o HostKey={keys}/host -o AuthorizedKeysFile={keys}/user.pub -o StrictModes=no \
    -o PermitRootLogin=yes -o PidFile=none -o UsePAM=no -o MaxStartups=100
"""


def missing() -> str:
    """Why there can be no such machines here; empty where there can."""
    if os.geteuid() != 0:
        return "making namespaces needs root"
    if away := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(away)}"
    tried = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """One of them. link: our end of its cable."""

    def __init__(self, name: str, address: str, process: psutil.Process, link: str) -> None:
        self.name, self.address, self.link = name, address, link
        self._process = process

    def run(self, command: str, timeout_s: float = 120) -> str:
        """What a shell command of its root says. Raises AssertionError where it fails."""
        told = subprocess.run(
            self._inside(command), timeout=timeout_s, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        assert told.returncode == 0, f"{self.name}: {command}\n{told.stdout}"
        return told.stdout

    def start(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        """The same, behind our back."""
        with log.open("wb") as output:
            return subprocess.Popen(self._inside(command), stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def processes(self, word: str) -> list[str]:
        """The command lines that hold a word."""
        lines = self.run("ps -eo args").splitlines()
        return [line for line in lines if word in line and "ps -eo" not in line]

    def cut(self) -> None:
        """Pull the cable."""
        _ip(f"link set {self.link} down")

    def heal(self) -> None:
        """Put it back."""
        _ip(f"link set {self.link} up")

    def kill(self) -> None:
        """Cut the power: every process ends at once, and no connection is closed."""
        self.cut()
        self._process.kill()
        self._process.wait(20)

    def _inside(self, command: str) -> list[str]:
        enter = ["nsenter", f"--target={self._process.pid}", "--net", "--mount", "--pid", "--uts"]
        clean = ["env", "-i", f"HOME={HOME}", "TERM=dumb", "LANG=C.UTF-8", f"PATH={PATH}"]
        return [*enter, *clean, "bash", "-c", f"cd && {command}"]


@contextmanager
def machines(names: Sequence[str], folder: Path) -> Iterator[dict[str, Machine]]:
    """Machines that let root in by SSH, with the key `keys/user` of a folder that they all see: it is not in /tmp."""
    with ExitStack() as undo:
        keys = folder / "keys"
        keys.mkdir()
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / key], check=True)
        _ip(f"link add {BRIDGE} type bridge")
        undo.callback(_ip, f"link del {BRIDGE}")
        _ip(f"address add {DESK}/24 dev {BRIDGE}")
        _ip(f"link set {BRIDGE} up")
        found = {}
        for number, name in enumerate(names, start=1):
            found[name] = _booted(name, f"{NETWORK}.{number}", folder, undo)
        yield found


def _booted(name: str, address: str, folder: Path, undo: ExitStack) -> Machine:
    own = folder / name
    own.mkdir()
    script = BOOT.format(root=HOME, folder=own, name=name, address=address, keys=folder / "keys")
    log = undo.enter_context((own / "boot.log").open("wb"))
    outer = subprocess.Popen([*APART, "bash", "-c", script], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    undo.callback(outer.wait)
    undo.callback(outer.send_signal, signal.SIGKILL)
    process = _awaited(lambda: next(iter(psutil.Process(outer.pid).children()), None), f"{name} begins")
    link = f"mf-{name}"[:15]
    undo.callback(subprocess.run, ["ip", "link", "del", link], stderr=subprocess.DEVNULL)  # it goes with the machine
    _ip(f"link add {link} type veth peer name eth0 netns {process.pid}")
    _ip(f"link set {link} master {BRIDGE} up")
    machine = Machine(name, address, process, link)
    machine.run(f"ip link set lo up; ip link set eth0 up; ip address add {address}/24 dev eth0")
    machine.run(f"ip route add default via {DESK}")
    _awaited(lambda: _answers(address), f"{name} answers: {(own / 'boot.log').read_text()}")
    return machine


def _answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1):
            return True
    except OSError:
        return False


def _awaited(look: Callable[[], Any], what: str, limit_s: float = 20.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
