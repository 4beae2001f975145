"""POST /models/{name}/promote and /rollback: who answers for a model's name."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from pydantic import Field

from app.desired import Version
from app.errors import ModelNotFound
from app.messages import Strict
from app.promotion import Promoted, promote, rollback
from deployments.routes.bodies import Route

if TYPE_CHECKING:
    from deployments.gateway import Gateway

Reason = Annotated[str | None, Field(max_length=1000)]


class PromoteRequest(Strict):
    """version: of an adapter; force: although its gates did not pass it; reason: for the history."""

    version: Version
    force: bool = False
    reason: Reason = None


class RollbackRequest(Strict):
    reason: Reason = None


def routes(gateway: "Gateway") -> APIRouter:
    """The routes that change what is served."""
    router = APIRouter(tags=["models"], route_class=Route)

    @router.post("/models/{name:path}/promote")
    async def promote_adapter(name: str, body: PromoteRequest) -> Promoted:
        """Let an adapter answer for the model's name. Returns when every replica has it and every gateway names it."""
        return await promote(
            gateway.registry, _model(gateway, name), body.version, force=body.force, reason=body.reason
        )

    @router.post("/models/{name:path}/rollback")
    async def roll_back(name: str, body: RollbackRequest | None = None) -> Promoted:
        """Let the adapter before answer again; a second rollback undoes the first."""
        return await rollback(gateway.registry, _model(gateway, name), reason=body.reason if body else None)

    return router


def _model(gateway: "Gateway", name: str) -> str:
    """A model's own name. Raises ModelNotFound; also for that of one of its adapters."""
    served = gateway.served(name)
    if served not in gateway.cards:
        raise ModelNotFound(name, tuple(gateway.cards))
    return served
