"""`mindfu keys`: create, list and revoke API keys. Works on the database, whether or not a server runs."""

import json
from datetime import UTC, datetime
from typing import Annotated

import asyncpg
import typer

from app.keys import SCOPES, Key, Keys, Limits, Scope, pepper
from app.settings import Secrets, home
from deployments.cli_columns import columns
from deployments.cli_database import with_database
from deployments.cli_options import Json

HEAD = ("ID", "TENANT", "NAME", "SCOPES", "STATE", "LAST USED", "TURNS", "TOKENS")

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.command()
def create(
    *,
    tenant: Annotated[str, typer.Option(help="Whose documents and conversations it sees.")] = "default",
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="|".join(SCOPES), help="Repeat it.", show_default="chat and documents"),
    ] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    streams: Annotated[int | None, typer.Option(help="Requests at the same time.")] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(parser=datetime.fromisoformat, metavar="DATE", help="2027-01-31 or 2027-01-31T12:00"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key; it is shown once."""
    wanted: list[Scope] = [_scope(text) for text in scopes or ("chat", "documents")]
    limits = Limits.model_construct(  # the store checks the values, and says what is wrong with them
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, streams=streams
    )

    async def work(pool: asyncpg.Pool) -> tuple[Key, str]:
        until = expires and expires.astimezone(UTC)
        keys = _keys(pool, make_pepper=True)
        return await keys.create(tenant, wanted, name=name, limits=limits, expires_at=until)

    key, text = with_database(work)
    if as_json:
        print(json.dumps(key.model_dump(mode="json") | {"key": text}))
    else:
        print(f"{text}\n\nThis is the only time that the key is shown. Its id is {key.id}.")


@app.command("list")
def list_keys(*, as_json: Json = False) -> None:
    """All keys, with what was spent on each."""
    found = with_database(lambda pool: _keys(pool).all())
    if as_json:
        print(json.dumps([key.model_dump(mode="json") for key in found]))
    else:
        print(columns(HEAD, [_row(key) for key in found]))


@app.command()
def revoke(id: Annotated[str, typer.Argument()], *, as_json: Json = False) -> None:  # noqa: A002 - what is typed
    """End a key; gateways follow within 5 s."""
    key = with_database(lambda pool: _keys(pool).revoke(id))
    print(json.dumps(key.model_dump(mode="json")) if as_json else f"{key.id} opens nothing any more.")


def _scope(text: str) -> Scope:
    found = next((scope for scope in SCOPES if scope == text), None)
    if found is None:
        message = f"'{text}' is none of {', '.join(SCOPES)}."
        raise typer.BadParameter(message, param_hint="--scope")
    return found


def _keys(pool: asyncpg.Pool, *, make_pepper: bool = False) -> Keys:
    return Keys(pool, pepper(home(), Secrets.from_env().key_pepper, make=make_pepper) or b"")


def _row(key: Key) -> tuple[str, ...]:
    now = datetime.now(UTC)
    state = "revoked" if key.revoked_at else "expired" if key.expires_at and key.expires_at <= now else "works"
    used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
    return (key.id, key.tenant, key.name, ",".join(key.scopes), state, used, str(key.turns), str(key.tokens))
