"""JSON bodies, read by a parser that takes nothing which could not be written again when the turn is kept.

Python's own takes half a surrogate pair, and nesting as deep as its stack.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from app.errors import InvalidRequest


class Body(Request):
    """A request with our parser."""

    async def json(self) -> Any:
        """The body. Raises InvalidRequest where it is no JSON, not UTF-8, or nested deeper than 200."""
        try:
            return from_json(await self.body())
        except ValueError as exc:
            raise InvalidRequest(f"The request body is not JSON that can be read: {exc}.") from exc


class Route(APIRoute):
    """The route class of every router that takes JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Called by FastAPI, once."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(Body(request.scope, request.receive))

        return handle
