"""/models/{name}/promote, /rollback and /serving: who answers for a model's name, and how well."""

from typing import TYPE_CHECKING, Annotated, Self

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from app.desired import Serving, Share, Version
from app.errors import ModelNotFound
from app.messages import Strict
from app.promotion import Promoted, promote, rollback, try_out
from app.registry import Change
from app.trials import Compared, Standing
from deployments.routes.bodies import Route
from deployments.routes.callers import tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway

Reason = Annotated[str | None, Field(max_length=1000)]


class PromoteRequest(Strict):
    """version: of an adapter; force: although its gates did not pass it; reason: for the history.

    canary, shadow: try it out on that share of the conversations, seen or unseen.
    """

    version: Version
    force: bool = False
    reason: Reason = None
    canary: Share | None = None
    shadow: Share | None = None

    @model_validator(mode="after")
    def one_trial(self) -> Self:
        if self.canary is not None and self.shadow is not None:
            message = "canary and shadow: an adapter is tried in one way at a time"
            raise ValueError(message)
        return self


class RollbackRequest(Strict):
    reason: Reason = None


class Watched(Strict):
    """How what is new does, and how what it is held against does."""

    version: str
    control: str | None
    answers: Standing
    control_answers: Standing


class ServingReport(Strict):
    """What is served of a model. watched: a canary, or a champion of the last hours; unseen, shadows: of a shadow, the
    latest ones of the caller's tenant; changes: the latest first.
    """

    serving: Serving
    watched: Watched | None
    unseen: Standing | None
    shadows: tuple[Compared, ...]
    changes: tuple[Change, ...]


def routes(gateway: "Gateway") -> APIRouter:
    """The routes that change what is served."""
    router = APIRouter(tags=["models"], route_class=Route)

    @router.post("/models/{name:path}/promote")
    async def promote_adapter(name: str, body: PromoteRequest) -> Promoted:
        """Let an adapter answer for the model's name, or try it out. Returns when every replica has it and every
        gateway goes by it.
        """
        what = _model(gateway, name), body.version
        if body.canary is not None:
            return await try_out(gateway.registry, *what, "canary", body.canary, force=body.force, reason=body.reason)
        if body.shadow is not None:
            return await try_out(gateway.registry, *what, "shadow", body.shadow, force=body.force, reason=body.reason)
        return await promote(gateway.registry, *what, force=body.force, reason=body.reason)

    @router.post("/models/{name:path}/rollback")
    async def roll_back(name: str, body: RollbackRequest | None = None) -> Promoted:
        """End a trial; else let the adapter before answer again, which a second rollback undoes."""
        return await rollback(gateway.registry, _model(gateway, name), reason=body.reason if body else None)

    @router.get("/models/{name:path}/serving")
    async def serving(request: Request, name: str) -> ServingReport:
        """Who answers for the model's name, who is on trial, how well they do, and what was changed."""
        model = _model(gateway, name)
        served = (await gateway.registry.desired()).of(model)
        case = await gateway.watch.case(served)
        watched = None
        if case is not None:
            ours, theirs = await gateway.watch.standings(case)
            watched = Watched(version=case.version, control=case.control, answers=ours, control_answers=theirs)
        trial = served.trial if served.trial and served.trial.kind == "shadow" else None
        return ServingReport(
            serving=served,
            watched=watched,
            unseen=await gateway.trials.unseen(model, trial.version, trial.since) if trial else None,
            shadows=await gateway.trials.shadows(model, trial.version, tenant(request)) if trial else (),
            changes=await gateway.registry.changes(model, limit=20),
        )

    return router


def _model(gateway: "Gateway", name: str) -> str:
    """A model's own name. Raises ModelNotFound; also for that of one of its adapters."""
    served = gateway.served(name)
    if served not in gateway.cards:
        raise ModelNotFound(name, tuple(gateway.cards))
    return served
