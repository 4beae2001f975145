"""Errors as HTTP answers: the only place that renders them."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.dialects import anthropic, openai
from app.errors import InvalidRequest, MindFuError, NotFound


def register(app: FastAPI) -> None:
    """Let every error of the application be rendered here."""
    app.add_exception_handler(MindFuError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def render(exc: MindFuError, path: str, request_id: str, status: int | None = None) -> JSONResponse:
    """The error object of the dialect that a path speaks, with Retry-After where waiting helps, and how far what is
    waited for is.
    """
    headers = {"retry-after": str(max(1, round(exc.retry_after_s)))} if exc.retry_after_s else {}
    if exc.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"  # RFC 9110, 15.5.2
    progress = {"progress": exc.progress} if exc.progress else {}
    if path.startswith("/v1/messages"):
        headers["request-id"] = request_id
        return JSONResponse(anthropic.error(exc, request_id) | progress, status or anthropic.status(exc), headers)
    return JSONResponse(openai.error(exc) | progress, status or exc.status, headers)


def _answer(request: Request, exc: MindFuError, status: int | None = None) -> JSONResponse:
    return render(exc, request.url.path, request.state.x_request_id, status)


async def _ours(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, MindFuError)
    return _answer(request, exc)


async def _invalid(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    return _answer(request, refused(exc.errors()[0]))


async def _http(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    if exc.status_code == HTTPStatus.NOT_FOUND:
        return _answer(request, NotFound("route", f"{request.method} {request.url.path}"))
    if isinstance(exc.__cause__, MindFuError):  # FastAPI wraps what the parser of the body raises
        return _answer(request, exc.__cause__)
    refusal = InvalidRequest(f"{request.method} {request.url.path}: {exc.detail}.")
    response = _answer(request, refusal, exc.status_code)
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
