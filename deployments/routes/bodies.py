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

MOST_VALUES = 100_000  # an agent's request with its tools has some thousands


class Body(Request):
    """A request with our parser."""

    async def json(self) -> Any:
        """The body. Raises InvalidRequest where it is no JSON, not UTF-8, nested deeper than 200, or too much of it."""
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
    """That there are not too many values, and no number that JSON does not have: NaN, Infinity, 1e999."""
    seen, waiting = 0, [read]
    while waiting:
        value = waiting.pop()
        seen += 1
        if isinstance(value, float) and not isfinite(value):
            param = next(_not_finite(read))
            raise InvalidRequest(f"'{param}' must be a finite number.", param)
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
        if seen + len(waiting) > MOST_VALUES:
            raise InvalidRequest(f"The request body holds more than {MOST_VALUES} JSON values. Send less at a time.")


def _not_finite(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, float) and not isfinite(value):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}[{index}]")
