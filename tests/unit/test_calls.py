"""Errors of other processes: people see ours, and never how Ray wraps them."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from app.errors import NotFound, Overloaded, Unavailable
from deployments.calls import call, stream
from tests.fakes import DONE, Handle, Streamed

BUG = RayTaskError("f", "remote traceback", ValueError("bug"))


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (RayTaskError("f", "remote traceback", NotFound("document", "d")), NotFound),
        (RayTaskError("f", "remote traceback", BackPressureError(9, 8)), Overloaded),
        (BackPressureError(9, 8), Overloaded),
        (ActorDiedError(), Unavailable),
        (AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata()), Unavailable),
        (AioRpcError(grpc.StatusCode.CANCELLED, Metadata(), Metadata()), Unavailable),
        (BUG, RayTaskError),
    ],
)
async def test_errors_of_other_processes_arrive_as_ours(raised: Exception, seen: type[Exception]):
    """Ours as it was raised there, a part that is away as Unavailable; a bug stays a bug. One way and streamed."""

    async def method() -> None:
        raise raised

    with pytest.raises(seen) as one:
        await call("part", Handle(method=method), "method")
    with pytest.raises(seen) as streamed:
        _ = [item async for item in stream("part", Handle(method=lambda: Streamed([raised])), "method")]
    assert str(one.value) == str(streamed.value)
    if seen is not RayTaskError:
        assert "traceback" not in str(one.value)


async def test_a_stream_that_is_left_is_cancelled_there():
    """Closing our end closes the other one, wherever it is."""
    remote = Streamed([DONE, None])
    items = stream("part", Handle(method=lambda: remote), "method")
    await anext(items)
    await items.aclose()
    assert remote.cancelled
