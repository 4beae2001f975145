"""`mindfu forget`: conversations go from everywhere that they went. On the database, whether or not a server runs."""

import json
from typing import Annotated

import asyncpg
import typer

from app.errors import InvalidRequest
from app.forgetting import Forgetting, Gone, sweep
from app.runs import Runs
from app.settings import home
from deployments.cli_database import with_database
from deployments.cli_options import Json


def forget(
    conversations: Annotated[list[str] | None, typer.Argument(metavar="[CONVERSATION]...", show_default=False)] = None,
    *,
    user: Annotated[str | None, typer.Option(help="All of this person, as clients named them.")] = None,
    key: Annotated[str | None, typer.Option(help="All of this key, by its id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the tenant.")] = False,
    tenant: Annotated[str, typer.Option(help="Whose conversations.")] = "default",
    as_json: Json = False,
) -> None:
    """Forget conversations: in the database, in memory, in data sets; adapters that learnt from them answer no more."""
    if bool(conversations) + (user is not None) + (key is not None) + everything != 1:
        message = "Name conversations, or one of --user, --key and --all."
        raise InvalidRequest(message, "conversations")

    async def work(pool: asyncpg.Pool) -> tuple[Gone, bool]:
        forgetting = Forgetting(pool)
        if conversations:
            each = [await forgetting.conversation(tenant, name) for name in conversations]
            adapters = {adapter for gone in each for adapter in gone.adapters}
            gone = Gone(len(each), tuple(sorted(adapters)))
        else:
            gone = await forgetting.all_of(tenant, user=user, key=key)
        swept = await Runs(pool).running() is None
        if swept:
            await sweep(pool, home())
        return gone, swept

    gone, swept = with_database(work)
    if as_json:
        print(json.dumps(gone._asdict() | {"data_sets_swept": swept}))
        return
    print(f"{gone.conversations} conversations are forgotten.")
    if gone.adapters:
        print(f"These adapters learnt from them, and are promoted no more: {', '.join(gone.adapters)}.")
    if not swept:
        print("Their words in data sets go as soon as the training run that works has ended.")
