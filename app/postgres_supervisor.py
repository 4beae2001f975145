"""The process that runs the embedded PostgreSQL of one home, as long as somebody uses it.

    python -m app.postgres_supervisor HOME FD      FD: a listening unix socket, handed over by the first user

A user is an open connection to that socket: the kernel closes it even when the user is killed. Every user is told once,
in one line of JSON, that the server takes connections (`null`) or why it does not (the error's class and arguments).
The server is started again when it dies, and stopped cleanly when the last user has been gone for LINGER_S.
It is our child, but it outlives us if we are killed: the next supervisor adopts it by its pid file.

Deliberately knows nothing of SQL. Imports no pydantic, so that it starts fast and stays small.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable
from pathlib import Path
from subprocess import SubprocessError

from app.errors import MindFuError, Misconfigured, Unavailable
from app.postgres_home import PostgresHome, binaries
from app.unprivileged import User, give_up_root

LINGER_S = 2.0  # a restarted application finds its server still warm
RETRY_S = 1.0  # between two attempts to start
POLL_S = 0.02  # the server tells that it is ready in a file
ADOPTED_POLL_S = 0.2  # only a parent is told when a process ends
FAST_STOP_S = 30.0  # then it is stopped the hard way; the log is replayed at the next start
LOG_BYTES = 16 * 2**20  # a longer log is put aside at start-up, one generation
MAJOR_VERSION = "18"

# Durable, local and small. Anything not here is PostgreSQL's own default (fsync and synchronous_commit are on).
SERVER_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",  # every replica on this machine has a pool of its own
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "max_parallel_workers_per_gather": "0",  # two cores are shared with a language model
    "max_logical_replication_workers": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}


class Supervisor:
    """Runs one server and counts its users."""

    def __init__(self, home: PostgresHome) -> None:
        self.home = home
        self._users = 0
        self._answer = b""
        self._answerable = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle: asyncio.TimerHandle | None = None

    async def run(self, listener: socket.socket) -> None:
        """Serve until the last user has left, or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        server = await asyncio.start_unix_server(self._attend, sock=listener)
        self._count(0)
        keeping = asyncio.create_task(self._keep_running())
        keeping.add_done_callback(lambda _: self._stopping.set())  # it ends by a bug only
        await self._stopping.wait()
        server.close()  # whoever comes from now on starts the next supervisor, which waits for our end
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await keeping
            finally:
                await self._stop_server()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count(+1)
        try:
            await self._answerable.wait()
            writer.write(self._answer)
            await reader.read()  # returns when the user leaves or dies
        except ConnectionError:
            pass  # left without reading the answer
        finally:
            self._count(-1)
            writer.close()

    def _count(self, change: int) -> None:
        self._users += change
        if self._idle is not None:
            self._idle.cancel()
        if self._users == 0:
            self._idle = asyncio.get_running_loop().call_later(LINGER_S, self._stopping.set)

    def _tell(self, error: MindFuError | None) -> None:
        self._answer = json.dumps(error and [type(error).__name__, *error.args]).encode() + b"\n"
        self._answerable.set()

    async def _keep_running(self) -> None:
        while True:
            try:
                server = await self._start_server()
            except (MindFuError, OSError, SubprocessError) as error:
                say(f"PostgreSQL does not start: {error}")
                self._tell(error if isinstance(error, MindFuError) else Unavailable("database", str(error)))
                await asyncio.sleep(RETRY_S)
                continue
            self._tell(None)
            await self._ended(server)
            say("PostgreSQL has ended, starting it again")
            self._answerable.clear()

    async def _start_server(self) -> Process | None:
        """Return when a server takes connections: our child, or None for one that was running already."""
        if self.home.postmaster() is None:
            as_user = await self._prepare()
            self.home.forget_stranger()
            say("starting PostgreSQL")
            server = await self._spawn(as_user)
        else:
            server = None
            say(f"adopted PostgreSQL, process {self.home.postmaster()}")
        while not self.home.ready():
            has_ended = self.home.postmaster() is None if server is None else server.returncode is not None
            if has_ended:
                raise Unavailable("database", f"PostgreSQL ended while starting: {reason(self.home.log)}")
            await asyncio.sleep(POLL_S)
        return server

    async def _prepare(self) -> Callable[[], None] | None:
        """Make the data folder if there is none. Returns what a child runs before exec (None: nothing)."""
        user = self.home.server_user()
        as_user = user and give_up_root(user, (self.home.data, self.home.run, binaries()))
        if user:
            os.chown(self.home.run, *user)
        if self.home.data.exists():
            self._check_version()
            if user and self.home.data.stat().st_uid == 0:  # root has restored a copy
                for path in (self.home.data, *self.home.data.rglob("*")):
                    os.chown(path, *user, follow_symlinks=False)
        else:
            await self._initialize(user, as_user)
        return as_user

    def _check_version(self) -> None:
        found = (self.home.data / "PG_VERSION").read_text().strip()
        if found != MAJOR_VERSION:
            raise Misconfigured(
                "MINDFU_HOME",
                f"{self.home.data} was made by PostgreSQL {found}, this is {MAJOR_VERSION}",
                "Dump it with the release that made it and load it into a new home.",
            )

    async def _initialize(self, user: User | None, as_user: Callable[[], None] | None) -> None:
        """Run initdb beside the final place, so that a crash leaves no half-made data folder there."""
        fresh = self.home.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if user:
            os.chown(fresh, *user)
        options = "--username=postgres --auth-local=trust --auth-host=reject --data-checksums --no-instructions"
        locale = "--encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
        initdb = await self._exec(as_user, "initdb", f"--pgdata={fresh}", *options.split(), *locale.split())
        if await initdb.wait() != 0:
            raise Unavailable("database", f"initdb failed: {reason(self.home.log)}")
        fresh.rename(self.home.data)

    async def _spawn(self, as_user: Callable[[], None] | None) -> Process:
        quoted = str(self.home.run).replace('"', '""')  # it is a list, separated by commas
        options = SERVER_OPTIONS | {"unix_socket_directories": f'"{quoted}"'}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return await self._exec(as_user, "postgres", "-D", str(self.home.data), *arguments)

    async def _exec(self, as_user: Callable[[], None] | None, program: str, *arguments: str) -> Process:
        return await asyncio.create_subprocess_exec(
            binaries() / program,
            *arguments,
            stdin=DEVNULL,
            stdout=sys.stderr,
            stderr=STDOUT,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
            preexec_fn=as_user,
        )

    async def _ended(self, server: Process | None) -> None:
        if server is not None:
            await server.wait()
        await self._gone(ADOPTED_POLL_S)

    async def _gone(self, poll_s: float) -> None:
        while self.home.postmaster() is not None:  # noqa: ASYNC110 – another process's end is no event of our loop
            await asyncio.sleep(poll_s)

    async def _stop_server(self) -> None:
        for number, patience_s in ((signal.SIGINT, FAST_STOP_S), (signal.SIGQUIT, FAST_STOP_S)):
            pid = self.home.postmaster()
            if pid is None:
                return
            os.kill(pid, number)  # SIGINT: a fast, clean stop. SIGQUIT: at once, recovery at the next start
            try:
                async with asyncio.timeout(patience_s):
                    await self._gone(POLL_S)
            except TimeoutError:
                say(f"PostgreSQL did not stop within {patience_s:.0f} s of {signal.Signals(number).name}")


def reason(log: Path) -> str:
    """Why PostgreSQL ended, in its own words: its last complaint since we spoke last, else its last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    ours = [number for number, line in enumerate(lines) if line.startswith("supervisor [")]
    said = lines[ours[-1] + 1 if ours else 0 :]
    complaints = [line for line in said if "FATAL" in line or "error:" in line]
    return f"{(complaints or said or ['without a word'])[-1].strip()} ({log})"


def say(message: str) -> None:
    """One line to the log, which is our stderr."""
    print(f"supervisor [{os.getpid()}] {message}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Detach from whoever started us, wait for a predecessor's end, and supervise."""
    home, listener = PostgresHome(Path(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    if os.fork():
        os._exit(0)  # the starter waits for this process only
    os.setsid()
    if home.log.stat().st_size > LOG_BYTES:
        home.log.rename(home.log.with_name("log.1"))
        os.dup2(os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), sys.stderr.fileno())
    with home.supervisor_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asyncio.run(Supervisor(home).run(listener))


if __name__ == "__main__":
    main()
