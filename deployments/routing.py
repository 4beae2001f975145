"""Which replica is asked: the one that has read the longest beginning of a prompt already, while it is not too busy.

Ray's own router does the work, on a tree of beginnings that all gateways share. It takes OpenAI's dicts, though, fails
on our messages and on calls without any (stats, load), and knows no tenants: this class tells it what a prompt is.
"""

from collections.abc import Sequence
from typing import Any

import ray
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import PrefixCacheAffinityRouter
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree import PrefixTreeActor
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import RequestRouterConfig

from app.messages import Generate

Replicas = list[Any]

KNOBS = {
    "imbalanced_threshold": 8,  # requests that one replica may have more than another; then the freer one is asked
    "match_rate_threshold": 0.1,  # of a prompt, below which nothing is gained: the replica that has read least
    "do_eviction": True,  # the tree would grow for ever otherwise
    "eviction_threshold_chars": 8_000_000,  # about 100 conversations of 20,000 tokens
    "eviction_target_chars": 6_000_000,
}


class PrefixRouter(PrefixCacheAffinityRouter):  # type: ignore[misc]  # untyped
    """Ray's router of prefixes for requests of our contract; what has no prompt goes to the freer of two."""

    def initialize_state(self, **knobs: object) -> None:
        """Share one tree with the other gateways. Ray's own would wait for a CPU, where the graph may have them all."""
        of = self._deployment_id
        tree = PrefixTreeActor.options(
            name="PrefixTree",
            namespace=f"{SERVE_NAMESPACE}::{of.app_name}::{of.name}",
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
        ).remote()
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller._register_shutdown_cleanup_actor.remote(tree))  # noqa: SLF001 - as Ray's own router does
        super().initialize_state(tree_actor=tree, **knobs)

    async def choose_replicas(self, candidate_replicas: Replicas, pending_request: Any = None) -> list[Replicas]:
        """The replicas to be tried, best first, as Ray asks for them."""
        plain = pending_request is None or beginning(pending_request.args) is None
        way = PowerOfTwoChoicesRequestRouter if plain else PrefixCacheAffinityRouter
        chosen: list[Replicas] = await way.choose_replicas(self, candidate_replicas, pending_request)
        return chosen

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """Remember who read what."""
        if beginning(pending_request.args) is not None:
            super().on_request_routed(pending_request, replica_id, result)

    def _extract_text_from_request(self, pending_request: Any) -> str:
        return beginning(pending_request.args) or ""


def by_prefix() -> RequestRouterConfig:
    """For `serve.deployment(…).options(request_router_config=…)`."""
    return RequestRouterConfig(request_router_class=PrefixRouter, request_router_kwargs=KNOBS)


def beginning(arguments: Sequence[object]) -> str | None:
    """The text by whose beginning a call is routed; None where it has none.

    What shares no cache shares no beginning: weights and tenant come first.
    """
    asked = next((one for one in arguments if isinstance(one, Generate)), None)
    if asked is None:
        return None
    said = (asked.prompt,) if asked.prompt is not None else (message.content for message in asked.messages)
    return "\n".join([asked.tenant, asked.adapter or "", *said])
