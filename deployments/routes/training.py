"""POST /train/start, and what becomes of it: /train/runs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.dialects import training as dialect
from app.dialects.events import Json
from app.errors import ModelNotFound
from app.runs import ENDED, Order, Origin, Parameters, Run
from deployments.ordering import parameters_for, require_training
from deployments.routes.bodies import Route
from deployments.routes.callers import Tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway

LOOK_S = 0.5
PIECE = 2**16  # bytes of a log that are sent at a time

Limit = Annotated[int, Query(ge=1, le=100)]
Tail = Annotated[int, Query(ge=0, le=2**20)]


def routes(gateway: "Gateway") -> APIRouter:
    """The routes of training runs."""
    router = APIRouter(prefix="/train", tags=["training"], route_class=Route)

    @router.post("/start", status_code=202)
    async def start(tenant: Tenant, body: dialect.StartRequest | None = None) -> Json:
        """Learn: queue a run. Whether it can succeed is told by the run, in its first second."""
        body = body or dialect.StartRequest()
        order = body.order(tenant, await parameters(gateway, body.model))
        return dialect.run(await queued(gateway, tenant, order, "http"))

    @router.get("/runs")
    async def list_runs(tenant: Tenant, limit: Limit = 20, after: str | None = None) -> Json:
        """The runs, the latest first."""
        found = await gateway.recorder.read(gateway.runs.list(tenant, limit=limit + 1, after=after))
        return dialect.runs(found, limit=limit)

    @router.get("/runs/{run_id}")
    async def get(tenant: Tenant, run_id: str) -> Json:
        """One run: its state, how far its stage is, what its stages did."""
        run = await gateway.recorder.read(gateway.runs.get(tenant, run_id))
        return dialect.run(run, await gateway.recorder.read(gateway.runs.stages(run.id)))

    @router.get("/runs/{run_id}/events")
    async def events(tenant: Tenant, run_id: str, after: Annotated[int, Query(ge=0, le=2**62)] = 0) -> Json:
        """What happened, the oldest first, at most 1000; `after` is the id of the last one that is known."""
        run = await gateway.recorder.read(gateway.runs.get(tenant, run_id))
        return dialect.events(await gateway.recorder.read(gateway.runs.events_since(run.id, after)))

    @router.get("/runs/{run_id}/logs")
    async def logs(tenant: Tenant, run_id: str, tail: Tail = 2**16, *, follow: bool = False) -> StreamingResponse:
        """The end of what it printed, up to `tail` bytes; with `follow` also what it prints until it ends."""
        run = await gateway.recorder.read(gateway.runs.get(tenant, run_id))
        file = gateway.home / "runs" / "logs" / f"{run.id}.log"
        told = _printed(gateway, run, file, tail, follow=follow)
        return StreamingResponse(told, media_type="text/plain; charset=utf-8")

    @router.post("/runs/{run_id}/cancel")
    async def cancel(tenant: Tenant, run_id: str) -> Json:
        """End a run: at once where it waits, within seconds where it runs. What its stages did is kept."""
        return dialect.run(await gateway.recorder.read(gateway.runs.cancel(tenant, run_id)))

    return router


async def parameters(gateway: "Gateway", model: str | None) -> Parameters:
    """The stages' parameters to tune a served model; None: the main one. Raises ModelNotFound, Misconfigured."""
    llm = gateway.settings.llm
    name = llm.name if model is None else gateway.served(model)
    if name not in gateway.cards:
        raise ModelNotFound(model or name, tuple(gateway.cards))
    return await asyncio.to_thread(parameters_for, name, llm, gateway.home)


async def queued(gateway: "Gateway", tenant: str, order: Order, origin: Origin) -> Run:
    """A new run. Raises NotFound for an uploaded file that is none, Conflict where training is not installed."""
    require_training()
    for upload in (*order.files, *([order.trusted] if order.trusted else [])):
        await gateway.recorder.read(gateway.uploads.one(tenant, upload))
    return await gateway.recorder.read(gateway.runs.add(tenant, order, origin))


async def _printed(gateway: "Gateway", run: Run, file: Path, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
    place = max(0, await asyncio.to_thread(_size, file) - tail)
    while True:
        ended = run.state in ENDED
        while piece := await asyncio.to_thread(_piece, file, place):
            place += len(piece)
            yield piece
        if ended or not follow:
            return
        await asyncio.sleep(LOOK_S)
        run = await gateway.recorder.read(gateway.runs.get(None, run.id))


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _piece(file: Path, place: int) -> bytes:
    if not file.exists():
        return b""
    with file.open("rb") as opened:
        opened.seek(place)
        return opened.read(PIECE)
