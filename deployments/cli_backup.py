"""`mindfu backup` and `mindfu restore`: everything into one archive, and back into an empty home.

A backup runs beside a server, whose vectors it asks the server for, or without one. A restore needs that none runs.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import typer

from app.archive import SUFFIX, Manifest, prune
from app.backup import Stores
from app.backup import backup as back_up
from app.errors import InvalidRequest
from app.restore import require_unused
from app.restore import restore as bring_back
from app.settings import Secrets, home
from deployments.cli_options import Json
from deployments.joining import Part, address_of, joined


def backup(
    target: Annotated[str, typer.Argument(help="A folder, a file that ends with .tar, or a URL like s3://bucket/x.")],
    *,
    keep: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Then delete all but the newest N archives of the folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put everything into one archive, while a server runs or not: conversations, documents, vectors, adapters, keys.

    Exit status 0: done; 1: it could not be, and there is no archive.
    """
    if keep is not None and target.endswith(SUFFIX):
        message = f"--keep goes with a folder, and {target} is a file."
        raise InvalidRequest(message, "keep")

    async def work() -> tuple[str, Manifest]:
        async with _stores() as stores:
            return await back_up(stores, target)

    place, manifest = asyncio.run(work())
    gone = prune(target, keep) if keep else ()
    for what in manifest.facts.incomplete:
        print(f"not whole: {what}", file=sys.stderr)
    if as_json:
        print(json.dumps({"archive": place, "deleted": gone, **manifest.facts.model_dump(mode="json")}))
        return
    print(f"{place}: {_told(manifest)}.")
    if gone:
        print(f"Deleted, as {keep} are kept: {', '.join(gone)}.")


def restore(
    archive: Annotated[str, typer.Argument(help="What `mindfu backup` wrote: a path or a URL.")],
    *,
    as_json: Json = False,
) -> None:
    """Bring a backup back, into a home and stores that are empty.

    Exit status 0: done; 1: it could not be.
    """
    require_unused(home())  # before the vector store makes its folder

    async def work() -> Manifest:
        async with _stores() as stores:
            return await bring_back(stores, archive)

    manifest = asyncio.run(work())
    if as_json:
        print(json.dumps({"home": str(home()), **manifest.facts.model_dump(mode="json")}))
    else:
        print(f"{home()}: {_told(manifest)}, as they were on {manifest.facts.created_at:%Y-%m-%d %H:%M} UTC.")


def _told(manifest: Manifest) -> str:
    counts = ", ".join(f"{number:,} {name}" for name, number in manifest.facts.counts.items())
    size = sum(member.size for member in manifest.members.values())
    return f"{counts}; {len(manifest.members):,} files, {size / 1e6:,.1f} MB"


@asynccontextmanager
async def _stores() -> AsyncIterator[Stores]:
    """The stores of the environment. The embedded vectors are the running server's, or ours while none runs."""
    secrets, folder = Secrets.from_env(), home()
    url = secrets.postgres_url.get_secret_value() if secrets.postgres_url else None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if secrets.qdrant_url:
        from app.vectors_remote import RemoteVectors  # takes a second

        key = secrets.qdrant_api_key
        remote = RemoteVectors(secrets.qdrant_url, key.get_secret_value() if key else None)
        try:
            yield Stores(url, folder, remote)
        finally:
            await remote.close()
    elif address := address_of(folder):
        with joined(folder, address):
            yield Stores(url, folder, _Served())
    else:
        from deployments.vector_store import VectorStore  # takes Qdrant's engine along

        store = VectorStore(folder)
        try:
            yield Stores(url, folder, store)
        finally:
            await store.close()


class _Served:
    """The running server's vector store."""

    def __init__(self) -> None:
        self._part = Part("VectorStore")

    def __getattr__(self, method: str) -> Any:
        return partial(asyncio.to_thread, self._part.ask, method)
