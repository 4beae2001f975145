"""A deployment that may have no replica: what stands of it, and how long a request waits for one.

Serve keeps a call until there is a replica, and takes the call itself as the reason to make one. A GPU node takes
minutes to come, so that a call is given up after a while with how far it is, and Serve goes on for `downscale_delay_s`:
whoever asks again by then finds it further, or awake.

Every call counts as demand. What nobody needs (gauges, health, the list of models) is asked only while people ask, too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from app.errors import Starting, Unavailable

RECENT_S = 30.0
LOOK_TIMEOUT_S = 5.0
TROUBLED = frozenset({"UNHEALTHY", "DEPLOY_FAILED"})

Answer = TypeVar("Answer")


class Standing(NamedTuple):
    """What Serve says of a deployment. sleeps: it may have no replica. nodeless: those of `starting` without a node.

    since: when the first of `starting` was asked for, Unix time. trouble: why replicas do not start, empty if they do.
    """

    running: int
    starting: int = 0
    nodeless: int = 0
    since: float = 0.0
    sleeps: bool = False
    trouble: str = ""

    @property
    def state(self) -> Literal["ok", "starting", "asleep"]:
        """In a word."""
        return "ok" if self.running else "starting" if self.starting else "asleep"

    @property
    def stage(self) -> str:
        """How far it is on its way, for people."""
        if self.running or not self.starting:
            return self.state
        place = "waiting for a node" if self.nodeless == self.starting else "loading on its node"
        return f"{place} for {max(0.0, time.time() - self.since):.0f} s"


Look = Callable[[DeploymentHandle], Awaitable[Standing]]


async def of_serve(handle: DeploymentHandle) -> Standing:
    """Ask Serve's controller. Raises TimeoutError after LOOK_TIMEOUT_S, and Ray's errors."""
    async with asyncio.timeout(LOOK_TIMEOUT_S):
        details = await asyncio.to_thread(_get_global_client().get_serve_details)
    return standing(details["applications"][handle.app_name]["deployments"][handle.deployment_name])


def standing(details: dict[str, Any]) -> Standing:
    """details: of a deployment, as Serve's REST API has them."""
    scaling = details["deployment_config"].get("autoscaling_config") or {}
    starting = [replica for replica in details["replicas"] if replica["state"] == "STARTING"]
    return Standing(
        running=_count(details["replicas"], "RUNNING"),
        starting=len(starting),
        nodeless=sum(replica.get("node_id") is None for replica in starting),  # left out until there is one
        since=min((replica["start_time_s"] for replica in starting), default=0.0),
        sleeps=scaling.get("min_replicas") == 0,
        trouble=details["message"] if details["status"] in TROUBLED else "",
    )


class Sleeper:
    """A deployment that may have no replica, for `calls.call` and `calls.stream`.

    part: what people call it. wait_s: how long a call waits for a replica. greet: is awaited with the first answer,
    before that is passed on.
    """

    def __init__(
        self,
        handle: DeploymentHandle,
        part: str,
        wait_s: float,
        look: Look = of_serve,
        greet: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.handle, self._part, self._wait_s, self._look, self._greet = handle, part, wait_s, look, greet
        self._asked_at = float("-inf")

    async def standing(self) -> Standing:
        """At this moment. Raises TimeoutError, and Ray's errors."""
        return await self._look(self.handle)

    @property
    def asked(self) -> bool:
        """Whether somebody asked it within RECENT_S: then another question does not keep it awake much longer."""
        return time.monotonic() - self._asked_at < RECENT_S

    async def first(self, answer: Awaitable[Answer], *, beats: bool = False) -> Answer:
        """What a call answers first. Raises Starting where no replica runs after `wait_s`.

        A busy one is waited for; but if it beats (deployments/beating.py), a silent one is lost: raises Unavailable.
        """
        started = self._asked_at = time.monotonic()
        waiting = asyncio.ensure_future(answer)
        try:
            while not (await asyncio.wait({waiting}, timeout=self._wait_s))[0]:
                found = await self.standing()
                if not found.running:
                    raise Starting(self._part, found.stage, time.monotonic() - started, found.trouble)
                if beats:
                    raise Unavailable(self._part, f"none of its replicas took the request within {self._wait_s:g} s")
            await self._greeted()
            return waiting.result()
        finally:
            self._asked_at = time.monotonic()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _greeted(self) -> None:
        greet, self._greet = self._greet, None
        if greet is not None:
            await greet()


def _count(replicas: Iterable[dict[str, Any]], state: str) -> int:
    return sum(replica["state"] == state for replica in replicas)
