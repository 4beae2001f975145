"""A part as a deployment runs it: its log goes to Serve's, its numbers to Ray. The part itself knows of neither."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray

from app.errors import Misconfigured
from app.messages import Generate
from app.settings import Secrets
from deployments.beating import WHOLE_S, beating
from deployments.logs import join_serve
from deployments.metrics import Published

HEAD = "node:__internal_head__"  # the resource by which Ray tells the head


def observed(part: type, gauges: str | None = None, *, database: bool = False) -> type:
    """The same class, for `serve.deployment`. database: it works on PostgreSQL, which its node must reach.

    gauges: the name under which its `stats()` are published, with each health check, which Serve makes every ten
    seconds on every replica. What a part generates beats on its way: deployments/beating.py.
    """
    base: Any = part

    class Observed(base):  # type: ignore[misc]  # whose base is known at run time only
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            join_serve()
            if database:
                require_database()
            super().__init__(*args, **kwargs)

    class Measured(Observed):
        _published: Published | None = None

        async def check_health(self) -> None:
            await super().check_health()
            self._published = published = self._published or Published(gauges or "")
            published.readings(await self.stats())
            if hasattr(self, "cards"):
                cards = await self.cards()
                published.adapters((card.name, version) for card in cards for version in card.adapters)

    class Beating(Measured):
        async def generate(self, request: Generate) -> AsyncGenerator[tuple[Any, ...]]:
            pause_s = 0.0 if request.stream else WHOLE_S
            async with aclosing(beating(super().generate(request), pause_s=pause_s)) as batches:
                async for batch in batches:
                    yield batch

    made = Beating if hasattr(part, "generate") else Measured if gauges else Observed
    made.__name__, made.__qualname__, made.__doc__ = part.__name__, part.__qualname__, part.__doc__
    return made


def require_database() -> None:
    """Raise Misconfigured on a node that would start an embedded PostgreSQL beside the one that has everything."""
    if Secrets.from_env().postgres_url is None and not on_head(ray.nodes(), ray.get_runtime_context().get_node_id()):
        problem = "is not set, and the embedded PostgreSQL is on the head, where this node does not reach it"
        remedy = "Set it on all nodes to a PostgreSQL that all reach (docs/cluster.md)."
        raise Misconfigured("MINDFU_POSTGRES_URL", problem, remedy)


def on_head(nodes: list[dict[str, Any]], node_id: str) -> bool:
    """Whether a node is the cluster's head. nodes: as Ray lists them."""
    return any(node["NodeID"] == node_id and HEAD in node["Resources"] for node in nodes)
