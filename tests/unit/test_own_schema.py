"""Requests made from our own OpenAPI document, odd ones among them: whatever comes, it is no 5xx."""

import schemathesis
from hypothesis import HealthCheck, settings

from app.messages import Delta
from tests.fakes import DONE
from tests.server import Server

HOST = {"host": "localhost"}  # a foreign one is refused
schema = schemathesis.openapi.from_asgi("/openapi.json", Server(Delta("yes", 1), DONE).app, headers=HOST)


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_nothing_that_our_schema_describes_breaks_the_gateway(case: schemathesis.Case) -> None:
    """Right or wrong by the schema: an answer, or a refusal that is the caller's."""
    response = case.call(headers=HOST)
    assert response.status_code < 500, response.text
