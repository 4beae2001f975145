"""Call another deployment, and get its errors as they were raised there.

Ray wraps an exception of the remote side in a class whose str() is the remote traceback; nobody outside may see that.
"""

from collections.abc import AsyncGenerator, Iterable
from typing import Any

from grpc import RpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from app.errors import MindFuError, Overloaded, Unavailable
from app.messages import Beat
from deployments.beating import living
from deployments.waking import Sleeper

FOREIGN = (RayError, RayServeException, RpcError)  # RpcError: handles speak gRPC where Serve is set up for throughput
AWAY = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError, RpcError)


async def call(part: str, callee: DeploymentHandle | Sleeper, method: str, *args: object) -> Any:
    """One answer of `callee.method(*args)`. part: what people call it, for the error message."""
    try:
        if isinstance(callee, Sleeper):
            return await callee.first(getattr(callee.handle, method).remote(*args))
        return await getattr(callee, method).remote(*args)
    except FOREIGN as exc:
        raise translated(part, exc) from exc


async def stream(part: str, callee: DeploymentHandle | Sleeper, method: str, *args: object) -> AsyncGenerator[Any]:
    """The items of the generator `callee.method(*args)`. Closing this closes that one, wherever it is.

    Those of a Sleeper come in batches, and beat (deployments/beating.py): silence is an Unavailable, too.
    """
    handle = callee.handle if isinstance(callee, Sleeper) else callee
    items = getattr(handle.options(stream=True), method).remote(*args)
    try:
        if isinstance(callee, Sleeper):
            for item in _said(await callee.first(anext(items, ()), beats=True)):
                yield item
            async for batch in living(part, items):
                for item in _said(batch):
                    yield item
        else:
            async for item in items:
                yield item
    except FOREIGN as exc:
        raise translated(part, exc) from exc
    finally:
        items.cancel()


def _said(batch: Any) -> Iterable[Any]:
    """What is in a batch for others than us. A part that is not `observed` says item by item."""
    return (item for item in (batch if isinstance(batch, tuple) else (batch,)) if not isinstance(item, Beat))


def translated(part: str, exc: Exception) -> Exception:
    """The error that people should see: ours as it was raised, a full queue, a part that is away; a bug stays a bug."""
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    if isinstance(cause, MindFuError):
        return cause
    if isinstance(cause, BackPressureError):
        queued, limit, *_ = cause.args
        return Overloaded(queued, limit, cause.retry_after_s or 1.0)
    if isinstance(cause, AWAY):
        return Unavailable(part, "its process ended and is being replaced")
    return exc
