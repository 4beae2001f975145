"""`mindfu keys`: create, list and revoke API keys. Works on the database, whether or not a server runs."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from app.errors import MindFuError
from app.keys import SCOPES, Key, Keys, Limits, pepper
from app.postgres import open_pool
from app.settings import Secrets, home


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    keys = commands.add_parser("keys", help="create, list and revoke API keys")
    verbs = keys.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", help="make a key; it is shown once")
    create.add_argument("--tenant", default="default", help="whose documents and conversations it sees")
    scopes = "repeat it; default: chat and documents"
    create.add_argument("--scope", action="append", choices=SCOPES, dest="scopes", help=scopes)
    create.add_argument("--name", default="", help="what it is for")
    create.add_argument("--requests-per-minute", type=int)
    create.add_argument("--tokens-per-minute", type=int)
    create.add_argument("--streams", type=int, help="requests at the same time")
    create.add_argument("--expires", type=datetime.fromisoformat, metavar="DATE", help="2027-01-31 or 2027-01-31T12:00")
    create.set_defaults(action=_create)
    listing = verbs.add_parser("list", help="all keys, with what was spent on each")
    listing.set_defaults(action=_list)
    revoke = verbs.add_parser("revoke", help="end a key; gateways follow within 5 s")
    revoke.add_argument("id")
    revoke.set_defaults(action=_revoke)
    for verb in (create, listing, revoke):
        verb.add_argument("--json", action="store_true", help="print JSON")


def _create(options: argparse.Namespace) -> int:
    async def work(keys: Keys) -> None:
        limits = {name: getattr(options, name) for name in Limits.model_fields}
        expires = options.expires and options.expires.astimezone(UTC)
        key, text = await keys.create(
            options.tenant,
            options.scopes or ["chat", "documents"],
            name=options.name,
            limits=Limits.model_construct(**limits),  # the store checks the values, and says what is wrong with them
            expires_at=expires,
        )
        if options.json:
            print(json.dumps(key.model_dump(mode="json") | {"key": text}))
        else:
            print(f"{text}\n\nThis is the only time that the key is shown. Its id is {key.id}.")

    return _run(work, make_pepper=True)


def _list(options: argparse.Namespace) -> int:
    async def work(keys: Keys) -> None:
        found = await keys.all()
        if options.json:
            print(json.dumps([key.model_dump(mode="json") for key in found]))
            return
        head = ("ID", "TENANT", "NAME", "SCOPES", "STATE", "LAST USED", "TURNS", "TOKENS")
        rows = [head, *(_row(key) for key in found)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    return _run(work)


def _revoke(options: argparse.Namespace) -> int:
    async def work(keys: Keys) -> None:
        key = await keys.revoke(options.id)
        print(json.dumps(key.model_dump(mode="json")) if options.json else f"{key.id} opens nothing any more.")

    return _run(work)


def _row(key: Key) -> tuple[str, ...]:
    now = datetime.now(UTC)
    state = "revoked" if key.revoked_at else "expired" if key.expires_at and key.expires_at <= now else "works"
    used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
    return (key.id, key.tenant, key.name, ",".join(key.scopes), state, used, str(key.turns), str(key.tokens))


def _run(work: Callable[[Keys], Awaitable[None]], *, make_pepper: bool = False) -> int:
    """0: done; 1: it could not be, with the reason printed."""

    async def go() -> None:
        secrets, folder = Secrets.from_env(), home()
        url = secrets.postgres_url.get_secret_value() if secrets.postgres_url else None
        pool = await open_pool(url, folder)
        try:
            await work(Keys(pool, pepper(folder, secrets.key_pepper, make=make_pepper) or b""))
        finally:
            await pool.close()

    try:
        asyncio.run(go())
    except MindFuError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
