"""Keeps one process at the desired state: told by NOTIFY, and asking every two seconds in case that it was not.

    follower = Follower("gateway", registry)
    await follower.start()
    ... follower.desired ...
    await follower.close()

What was read last lies in `serving.json` of the home folder as well. A process that starts while PostgreSQL is away
goes by that, so that an outage never changes who answers.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import asyncpg
from pydantic import ValidationError

from app.desired import Adapter, Desired
from app.errors import ModelNotFound, Unavailable
from app.postgres import reaching_postgres
from app.registry import CHANNEL, Holdings, Part, Registry

POLL_S = 2.0
RETRY_S = 1.0
START_S = 10.0  # that a start waits for PostgreSQL and for adapters; they go on loading behind it
FILE = "serving.json"

log = logging.getLogger(__name__)

Converge = Callable[[Desired], Awaitable[Holdings]]


async def nothing(_: Desired) -> Holdings:
    """A gateway holds no adapters."""
    return {}


class Follower:
    """Holds the desired state, and tells the registry what this process made of it.

    converge: is called with every new state, and every `poll_s`; it returns what is held.
    """

    def __init__(self, part: Part, registry: Registry, converge: Converge = nothing, *, poll_s: float = POLL_S) -> None:
        self.id = uuid4()
        self._part, self._registry, self._converge, self._poll_s = part, registry, converge, poll_s
        self._file = registry.home / FILE
        self.desired = _read(self._file)
        self._woken = asyncio.Event()
        self._converged = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Follow from now on. Returns when the state was taken in, or after START_S."""
        self._following = asyncio.create_task(self._follow(), name=f"follow the desired state: {self._part}")
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await self._converged.wait()

    async def refresh(self) -> Desired:
        """The state at this moment. Raises Unavailable."""
        self._hold(await self._registry.desired())
        return self.desired

    def wake(self) -> None:
        """Look again now."""
        self._woken.set()

    async def close(self) -> None:
        """Stop following, and say so."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            with suppress(Unavailable):
                await self._registry.leave(self.id)

    def abandon(self) -> None:
        """Stop following at once, from where nothing can be awaited; the registry notices by the silence."""
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        known = bool(self.desired.revision)  # from the file: adapters need not wait for PostgreSQL
        while True:
            try:
                if known:
                    known = False
                    await self._converge(self.desired)
                with reaching_postgres():
                    async with self._registry.pool.acquire() as connection:
                        await self._listen(connection)
            except Unavailable as error:
                log.warning("Going by the serving state of revision %d. %s", self.desired.revision, error)
            except Exception:  # the loop's edge: whatever it was, the next state must not be missed
                log.exception("following the desired state failed")
            self._converged.set()
            await asyncio.sleep(RETRY_S)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        await connection.add_listener(CHANNEL, self._on_notify)
        connection.add_termination_listener(self._on_notify)
        try:
            while True:
                self._woken.clear()
                self._hold(await self._registry.desired(connection))
                taken = self.desired
                holdings = await self._converge(taken)
                await self._registry.report(self.id, self._part, taken.revision, holdings)
                self._converged.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._woken.wait()
        finally:
            with suppress(asyncpg.InterfaceError):  # it is closed, or the pool took it back
                connection.remove_termination_listener(self._on_notify)
                await connection.remove_listener(CHANNEL, self._on_notify)

    def _on_notify(self, *_: object) -> None:
        self._woken.set()

    def _hold(self, desired: Desired) -> None:
        if desired != self.desired:  # revisions begin again in another database: in a restored one, too
            self.desired = desired
            _write(self._file, desired)


async def find_adapter(follower: Follower | None, model: str, version: str) -> Adapter:
    """What a request names, also where it was registered since we looked; nothing is where nothing is followed.

    Raises ModelNotFound, Unavailable.
    """
    found = follower.desired.adapter(model, version) if follower else None
    if follower and found is None:
        found = (await follower.refresh()).adapter(model, version)
    if found is None:
        known = follower.desired.names_of(model) if follower else ()
        raise ModelNotFound(f"{model}:{version}", (model, *known))
    return found


def _read(file: Path) -> Desired:
    """What was held last; nothing where there is no file of this release."""
    try:
        return Desired.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Desired()
    except (OSError, ValidationError) as error:
        log.warning("%s cannot be read, and is left alone until PostgreSQL answers: %s", file, error)
        return Desired()


def _write(file: Path, desired: Desired) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(desired.model_dump_json())
        part.replace(file)
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error)
