"""JSON bodies, read by a parser that takes nothing which could not be written again when the turn is kept.

Python's own takes half a surrogate pair, NaN, and nesting as deep as its stack. Ours counts what it read too: a body of
some megabytes can hold millions of values, and each wrong one costs the validation of a request an error of its own.
"""

from collections.abc import Callable, Coroutine, Iterator
from math import isfinite
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from app.errors import InvalidRequest

MOST_DEPTH = 100  # what we read we must read again from where it is kept, one or two levels deeper
MOST_VALUES = 100_000  # an agent's request with its tools has some thousands


class Body(Request):
    """A request with our parser."""

    async def json(self) -> Any:
        """The body. Raises InvalidRequest where it is no JSON, not UTF-8, nested too deep, or too much of it."""
        try:
            read = from_json(await self.body())
        except ValueError as exc:
            raise InvalidRequest(f"The request body is not JSON that can be read: {exc}.") from exc
        _check(read)
        return read


class Route(APIRoute):
    """The route class of every router that takes JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Called by FastAPI, once."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(Body(request.scope, request.receive))

        return handle


def _check(read: Any) -> None:
    """That it is neither too deep nor too much, and has no number that JSON does not have: NaN, Infinity, 1e999."""
    level, depth, seen = [read], 0, 0
    while level:
        depth, seen = depth + 1, seen + len(level)
        if depth > MOST_DEPTH:
            raise InvalidRequest(f"The request body is nested deeper than {MOST_DEPTH} levels.")
        if seen > MOST_VALUES:
            raise InvalidRequest(f"The request body holds more than {MOST_VALUES} JSON values. Send less at a time.")
        if any(isinstance(value, float) and not isfinite(value) for value in level):
            param = next(_not_finite(read))
            raise InvalidRequest(f"'{param}' must be a finite number.", param)
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]


def _not_finite(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, float) and not isfinite(value):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}[{index}]")
