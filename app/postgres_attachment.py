"""A process's claim on the embedded PostgreSQL of a home: while it is held, the server runs.

The claim is an open connection to the supervisor (app.postgres_supervisor), which is started here if none listens.
Starting is done under a file lock, by binding the socket first and handing it over: whoever comes meanwhile connects at
once and waits for the answer. When the supervisor is killed the claim is renewed, so that its successor counts us too.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import app
from app import errors
from app.errors import Misconfigured, Unavailable
from app.postgres_home import PostgresHome

START_TIMEOUT_S = 60.0  # a first start took 4 s on two quiet cores; crowded ones have been 5 times slower
ATTEMPTS = 5  # supervisors that ended before they answered; one of them may have been on its way out

logger = logging.getLogger(__name__)


class Attachment:
    """One claim. Not for several event loops."""

    def __init__(self, home: PostgresHome) -> None:
        self.home = home
        self._lock = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._watching: asyncio.Task[None] | None = None

    async def hold(self) -> None:
        """Return when the server takes connections; at once, when the claim is held already.

        Raises Misconfigured or Unavailable with the reason why the server does not run.
        """
        async with self._lock:
            if self._writer is not None:
                return
            for _ in range(ATTEMPTS):
                try:
                    async with asyncio.timeout(START_TIMEOUT_S):
                        if await self._claim():
                            return
                except TimeoutError as error:
                    reason = f"PostgreSQL did not start within {START_TIMEOUT_S:.0f} s, see {self.home.log}"
                    raise Unavailable("database", reason) from error
            raise Unavailable("database", f"the supervisor of PostgreSQL keeps ending, see {self.home.log}")

    async def leave(self) -> None:
        """Give the claim up. The server stops soon after the last one has gone."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self.drop()

    def drop(self) -> None:
        """Give the claim up without waiting."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _claim(self) -> bool:
        """Connect and hear the answer. False: the supervisor ended before it gave one."""
        reader, writer = await self._connect()
        try:
            answer = await reader.readline()
            _raise_error(answer)
        except BaseException as error:
            writer.close()
            if isinstance(error, ConnectionError):
                return False
            raise
        if not answer:
            writer.close()
            return False
        self._writer, self._watching = writer, asyncio.create_task(self._watch(reader))
        return True

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, PermissionError):
            return await asyncio.open_unix_connection(self.home.supervisor_socket)
        await asyncio.to_thread(start_supervisor, self.home)
        return await asyncio.open_unix_connection(self.home.supervisor_socket)

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Renew the claim when the supervisor has gone without us."""
        with contextlib.suppress(ConnectionError):
            await reader.read()
        logger.warning("The supervisor of PostgreSQL has ended; starting another.")
        self._watching = None
        self.drop()
        try:
            await self.hold()
        except errors.MindFuError as error:
            logger.error("PostgreSQL is not supervised: %s", error)  # noqa: TRY400 – the next connection tries again


def start_supervisor(home: PostgresHome) -> None:
    """Start one unless one listens. Returns when connections to its socket are queued."""
    try:
        home.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # conversations and keys are nobody else's
        home.folder.mkdir(exist_ok=True)
        home.make_run_folder()
        with home.start_lock.open("w") as lock, home.log.open("ab") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _listens(home.supervisor_socket):
                return
            home.supervisor_socket.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(home.supervisor_socket))
                listener.listen(128)
                _spawn(home, listener, log.fileno())
    except PermissionError as error:
        raise Misconfigured(
            "MINDFU_HOME",
            f"{error.filename or home.folder} belongs to another user",
            "Run MindFu as that user, or choose another MINDFU_HOME.",
        ) from error


def _spawn(home: PostgresHome, listener: socket.socket, log: int) -> None:
    descriptor = listener.fileno()
    subprocess.run(  # noqa: S603 – our own module. Returns at once: it forks away from us
        [sys.executable, "-m", "app.postgres_supervisor", str(home.folder.parent), str(descriptor)],
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=Path(app.__path__[0]).parent,
        check=True,
    )


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def _raise_error(answer: bytes) -> None:
    told = json.loads(answer or b"null")
    if told is not None:
        name, *arguments = told
        raise getattr(errors, name)(*arguments)
