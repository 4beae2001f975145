"""What a call is routed by."""

from app.messages import Generate, Message
from app.settings import Settings
from deployments.graph import build
from deployments.routing import PrefixRouter, beginning, by_prefix

ASKED = Generate(
    request_id="r", tenant="acme", model="m", adapter="v1", messages=(Message(role="user", content="hello"),)
)


def test_a_prompt_begins_with_what_its_cache_depends_on():
    """Tenant and weights, then what was said: no other requests share a beginning."""
    assert beginning((ASKED,)) == "acme\nv1\nhello"
    assert beginning((ASKED.model_copy(update={"adapter": None}), ("text",))) == "acme\n\nhello"
    assert beginning((ASKED.model_copy(update={"messages": (), "prompt": "go on"}),)) == "acme\nv1\ngo on"


def test_a_call_without_a_prompt_has_no_beginning():
    """stats, files, check_layers."""
    assert beginning(()) is None
    assert beginning(("m", 3)) is None


def test_ray_is_told_of_the_router():
    """And the graph is built with it and without it, where vLLM is not installed either."""
    assert by_prefix().get_request_router_class() is PrefixRouter
    for prefix_routing in (True, False):
        vllm = {"engine": "vllm", "model": "/nowhere", "name": "m", "prefix_routing": prefix_routing}
        assert build(Settings.model_validate({"llm": vllm}))
