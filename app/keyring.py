"""Who is calling: keys as a gateway knows them, with a memory of seconds so that no request waits for PostgreSQL twice.

A revoked key is forgotten within REMEMBERED_S on every gateway. While PostgreSQL is away, keys that were seen go on
working, and others cannot be told: that is a 503 and not a 401.

As soon as a key was made everybody has to show one, and the end of the last one changes nothing of that: a leaked key
that is revoked, or one that expires at night, must not open the door to everyone.
"""

import hmac
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from pydantic import SecretStr

from app.errors import Unauthorized, Unavailable
from app.keys import SCOPES, Kept, Key, Keys, Limits, Scope, pepper, split

REMEMBERED_S = 5.0
TOUCHED_S = 60.0  # `last used` is written that often
MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Caller:
    """Who calls. key: None for MINDFU_API_KEY, and for this machine where there are no keys: then it is anonymous."""

    tenant: str = "default"
    scopes: frozenset[Scope] = frozenset(SCOPES)
    key: Key | None = None
    anonymous: bool = False

    @property
    def key_id(self) -> str | None:
        return self.key.id if self.key else None

    @property
    def limits(self) -> Limits:
        return self.key.limits if self.key else Limits()

    def may(self, scope: Scope) -> bool:
        """Whether this caller has a scope; `admin` has all of them."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass
class Remembered:
    """What PostgreSQL said of an id. kept: None where there is no such key."""

    kept: Kept | None
    asked_at: float
    touched_at: float = field(default=float("-inf"))


class Keyring:
    """Tells callers by what they show.

    home: where the pepper may come to lie while we run. required: everybody must show a key, though none was made yet:
    others than this machine can reach us.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        home: Path,
        *,
        api_key: SecretStr | None,
        pepper: SecretStr | None,
        required: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._home, self._now = pool, home, now
        self._api_key, self._given, self._required = api_key, pepper, required
        self._keys: Keys | None = None
        self._remembered: dict[str, Remembered] = {}
        self._any: bool | None = None  # None: nobody could tell yet
        self._any_asked_at = float("-inf")

    async def caller(self, shown: str) -> Caller | None:
        """Who shows this text. None: nobody has to, because there are no keys. Raises Unauthorized, Unavailable."""
        if self._api_key and hmac.compare_digest(shown.encode(), self._api_key.get_secret_value().encode()):
            return Caller()
        keys = self._opened()
        if keys is not None and (parts := split(shown)):
            return await self._holder(keys, *parts)
        if self._required or self._api_key or await self._locked():
            raise Unauthorized
        return None

    async def _holder(self, keys: Keys, id_: str, secret: str) -> Caller:
        known = await self._known(keys, id_)
        digest = keys.digest(secret)
        if known.kept is None or not hmac.compare_digest(digest, known.kept.digest):
            raise Unauthorized
        key = known.kept.key
        if key.revoked_at or (key.expires_at and key.expires_at <= datetime.now(UTC)):
            raise Unauthorized
        if self._now() - known.touched_at >= TOUCHED_S:
            known.touched_at = self._now()
            try:
                await keys.touch(id_)
            except Unavailable:  # what is only told must not stop what is asked
                known.touched_at = float("-inf")
        return Caller(key.tenant, frozenset(key.scopes), key)

    async def _known(self, keys: Keys, id_: str) -> Remembered:
        known = self._remembered.get(id_)
        if known and self._now() - known.asked_at < REMEMBERED_S:
            return known
        try:
            kept = await keys.find(id_)
        except Unavailable:
            if known and known.kept:
                return known
            raise
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        touched = known.touched_at if known else float("-inf")
        self._remembered[id_] = Remembered(kept, self._now(), touched)
        return self._remembered[id_]

    async def _locked(self) -> bool:
        """Whether a key was ever made, so that whoever shows none is refused.

        The database says so, also where the pepper is lost or lies on another machine. Until it answers, a pepper does.
        """
        if self._now() - self._any_asked_at >= REMEMBERED_S:
            with suppress(Unavailable):  # what was known stands
                self._any = await (self._keys or Keys(self._pool, b"")).any()
            self._any_asked_at = self._now()
        return self._keys is not None if self._any is None else self._any

    def _opened(self) -> Keys | None:
        """The keys, as soon as a pepper says that somebody made one."""
        if self._keys is None and (found := pepper(self._home, self._given)):
            self._keys = Keys(self._pool, found)
        return self._keys
