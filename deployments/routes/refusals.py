"""Errors as HTTP answers: the only place that renders them."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.dialects import openai
from app.errors import InvalidRequest, MindFuError, NotFound


def register(app: FastAPI) -> None:
    """Let every error of the application be rendered here."""
    app.add_exception_handler(MindFuError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def render(exc: MindFuError, status: int | None = None) -> JSONResponse:
    """OpenAI's error object, with Retry-After where waiting helps."""
    headers = {"retry-after": str(max(1, round(exc.retry_after_s)))} if exc.retry_after_s else {}
    return JSONResponse(openai.error(exc), status or exc.status, headers)


async def _ours(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, MindFuError)
    return render(exc)


async def _invalid(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    return render(refused(exc.errors()[0]))


async def _http(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    if exc.status_code == HTTPStatus.NOT_FOUND:
        return render(NotFound("route", f"{request.method} {request.url.path}"))
    if isinstance(exc.__cause__, MindFuError):  # FastAPI wraps what the parser of the body raises
        return render(exc.__cause__)
    refusal = InvalidRequest(f"{request.method} {request.url.path}: {exc.detail}.")
    response = render(refusal, exc.status_code)
    response.headers.update(exc.headers or {})
    return response


def refused(problem: dict[str, Any]) -> InvalidRequest:
    """The first problem that pydantic found, with the parameter as clients write it: messages[0].content."""
    param = parameter(problem["loc"])
    if not param:
        return InvalidRequest("The request body must be a JSON object, sent with 'Content-Type: application/json'.")
    if problem["type"] == "missing":
        return InvalidRequest(f"Missing required parameter: '{param}'.", param)
    shown = repr(problem.get("input"))
    return InvalidRequest(f"Invalid '{param}': {problem['msg']} (got {shown[:80]}).", param)


def parameter(location: Sequence[str | int]) -> str:
    """A location of pydantic's as a path: ("body", "messages", 0, "content", "str") is messages[0].content."""
    path = ""
    for step in location[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step not in {"str", "int", "float", "bool"} and not step[0].isupper():
            path += f".{step}" if path else step
    return path
