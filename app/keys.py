"""API keys: who calls, for which tenant, and what for. Kept in PostgreSQL, the secrets nowhere.

A key reads `mf_<id>_<secret>`. Of the secret, 256 random bits, an HMAC-SHA-256 under this installation's pepper is
kept: against a guess of that length a slow KDF adds nothing, and without the pepper a stolen table opens nothing. The
pepper is MINDFU_KEY_PEPPER, or a file of the home folder that the first key brings along.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import asyncpg
from pydantic import AwareDatetime, Field, SecretStr, ValidationError

from app.errors import InvalidRequest, NotFound
from app.messages import Strict
from app.postgres import reaching_postgres
from app.queries import queries

Scope = Literal["chat", "documents", "tools", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX, ID_LETTERS, ID_LENGTH = "mf", "abcdefghijklmnopqrstuvwxyz234567", 12
TENANT = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Limit = Annotated[int, Field(ge=1, le=2**31 - 1)]

SQL = queries("keys.sql")


class Limits(Strict):
    """Of one key, over all gateways together. None: no limit."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    streams: Limit | None = None  # requests at the same time

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.requests_per_minute, self.tokens_per_minute, self.streams))


class Key(Strict):
    """A key as it is kept. turns, tokens: spent on it, by the recorded turns; only `all` counts them."""

    id: str
    tenant: TENANT
    name: str = Field("", max_length=200)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    limits: Limits = Limits()
    created_at: datetime
    expires_at: AwareDatetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    turns: int = 0
    tokens: int = 0


class Kept(NamedTuple):
    """A key with the digest of its secret."""

    key: Key
    digest: bytes


class Keys:
    """The keys of one database."""

    def __init__(self, pool: asyncpg.Pool, pepper: bytes) -> None:
        self._pool, self._pepper = pool, pepper

    async def create(
        self,
        tenant: str,
        scopes: Iterable[Scope],
        *,
        name: str = "",
        limits: Limits | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its text: it is shown here and never again. Raises InvalidRequest for a value out of range."""
        limits, secret = limits or Limits(), secrets.token_urlsafe(32)
        id_ = "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))
        now = datetime.now().astimezone()
        if expires_at is not None and expires_at <= now:
            message = f"The key would have expired on {expires_at:%Y-%m-%d %H:%M}, it is {now:%Y-%m-%d %H:%M}."
            raise InvalidRequest(message, "expires_at")
        wanted = tuple(dict.fromkeys(scopes))
        try:
            Key.model_validate({
                "id": id_, "tenant": tenant, "name": name, "scopes": wanted, "limits": limits.model_dump(),
                "created_at": now,
            })  # fmt: skip
        except ValidationError as error:
            problem = error.errors()[0]
            field = str(problem["loc"][0])
            raise InvalidRequest(f"Invalid '{field}': {problem['msg']} (got {problem['input']!r}).", field) from error
        with reaching_postgres():
            row = await self._pool.fetchrow(
                SQL["insert"],
                *(id_, tenant, name, self.digest(secret), list(wanted)),
                *(limits.requests_per_minute, limits.tokens_per_minute, limits.streams, expires_at),
            )
        return _key(row), f"{PREFIX}_{id_}_{secret}"

    async def all(self) -> tuple[Key, ...]:
        """Every key, revoked ones too, the oldest first."""
        with reaching_postgres():
            rows = await self._pool.fetch(SQL["list"])
        spent = ({"turns": row["turns"], "tokens": int(row["tokens"])} for row in rows)
        return tuple(_key(row).model_copy(update=counted) for row, counted in zip(rows, spent, strict=True))

    async def revoke(self, id_: str) -> Key:
        """End a key. Gateways forget it within seconds. Raises NotFound."""
        with reaching_postgres():
            row = await self._pool.fetchrow(SQL["revoke"], id_)
        if row is None:
            raise NotFound("key", id_)
        return _key(row)

    async def find(self, id_: str) -> Kept | None:
        """A key by its id, whatever its state."""
        with reaching_postgres():
            row = await self._pool.fetchrow(SQL["find"], id_)
        return None if row is None else Kept(_key(row), bytes(row["digest"]))

    async def touch(self, id_: str) -> None:
        """Say that a key was used now."""
        with reaching_postgres():
            await self._pool.execute(SQL["touch"], id_)

    async def any(self) -> bool:
        """Whether a key was ever made, revoked and expired ones too."""
        with reaching_postgres():
            return bool(await self._pool.fetchval(SQL["any"]))

    def digest(self, secret: str) -> bytes:
        """What is kept of a secret."""
        return hmac.digest(self._pepper, secret.encode(), hashlib.sha256)


def split(text: str) -> tuple[str, str] | None:
    """Id and secret of a key's text, None where it is none."""
    prefix, _, rest = text.partition("_")
    id_, _, secret = rest.partition("_")
    return (id_, secret) if prefix == PREFIX and len(id_) == ID_LENGTH and secret else None


def pepper_file(home: Path) -> Path:
    """Where the pepper lies."""
    return home / "keys" / "pepper"


def pepper(home: Path, given: SecretStr | None, *, make: bool = False) -> bytes | None:
    """The pepper: the one of the environment, else that of the home folder; None where neither is there.

    make: then a new one is written to the home folder, for its owner alone.
    """
    if given:
        return given.get_secret_value().encode()
    file = pepper_file(home)
    if make and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(secrets.token_hex(32).encode())
        except FileExistsError:  # another process was faster
            pass
    return file.read_bytes() if file.exists() else None


def _key(row: asyncpg.Record) -> Key:
    fields = ("id", "tenant", "name", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at")
    limits = Limits(**{name: row[name] for name in Limits.model_fields})
    return Key(**{name: row[name] for name in fields}, limits=limits)
