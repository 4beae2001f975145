"""OpenAI's fine-tuning jobs, which are training runs under other names."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request

from app.dialects import openai_fine_tuning as dialect
from app.dialects.events import Json
from deployments.routes.bodies import Route
from deployments.routes.callers import Tenant
from deployments.routes.training import parameters, queued

if TYPE_CHECKING:
    from deployments.gateway import Gateway

Limit = Annotated[int, Query(ge=1, le=100)]
NUMBERS = 1000  # of training, the latest, in which a checkpoint's are looked for


def routes(gateway: "Gateway") -> APIRouter:
    """The routes of fine-tuning jobs."""
    router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=Route)

    @router.post("")
    async def create(tenant: Tenant, body: dialect.NewJob) -> Json:
        """Learn from an uploaded file, or from `conversations`."""
        order = body.order(tenant, await parameters(gateway, body.model))
        return dialect.job(await queued(gateway, tenant, order, "openai"))

    @router.get("")
    async def list_jobs(tenant: Tenant, request: Request, limit: Limit = 20, after: str | None = None) -> Json:
        """The jobs, the latest first; `metadata[name]=value` keeps to those that have it."""
        wanted = {
            name[len("metadata[") : -1]: value
            for name, value in request.query_params.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        found = await gateway.recorder.read(
            gateway.runs.list(tenant, limit=limit + 1, after=after, metadata=wanted or None)
        )
        return dialect.page([dialect.job(run) for run in found], limit=limit)

    @router.get("/{job_id}")
    async def retrieve(tenant: Tenant, job_id: str) -> Json:
        """One job."""
        return dialect.job(await gateway.recorder.read(gateway.runs.get(tenant, job_id)))

    @router.post("/{job_id}/cancel")
    async def cancel(tenant: Tenant, job_id: str) -> Json:
        """End a job."""
        return dialect.job(await gateway.recorder.read(gateway.runs.cancel(tenant, job_id)))

    @router.get("/{job_id}/events")
    async def events(tenant: Tenant, job_id: str, limit: Limit = 20, after: str | None = None) -> Json:
        """What happened, the latest first."""
        run = await gateway.recorder.read(gateway.runs.get(tenant, job_id))
        before = None if after is None else dialect.event_number(after)
        found = await gateway.recorder.read(gateway.runs.events(run.id, limit=limit + 1, before=before))
        return dialect.page([dialect.event(one) for one in found], limit=limit)

    @router.get("/{job_id}/checkpoints")
    async def checkpoints(tenant: Tenant, job_id: str, limit: Limit = 10, after: str | None = None) -> Json:
        """The checkpoint that became the adapter, once there is one."""
        run = await gateway.recorder.read(gateway.runs.get(tenant, job_id))
        stages = await gateway.recorder.read(gateway.runs.stages(run.id))
        numbers = await gateway.recorder.read(gateway.runs.events(run.id, limit=NUMBERS))
        found = dialect.checkpoints(run, stages, numbers)
        behind = [one for one in found if after is None]
        return dialect.page(behind, limit=limit, ends=True)

    return router
