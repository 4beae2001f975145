"""Our engine behind the thinnest HTTP server: what `benchmarks.engine` measures beside llama-server.

    python -m benchmarks.thin_server FILE.gguf PORT '{"slots": 16, "window": 2048}'

The third argument is LLMSettings as JSON. Speaks just enough of OpenAI's chat completions for the benchmark, streamed.
No checks, no records, no retrieval: the whole graph has a benchmark of its own, `benchmarks.serving`.
"""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from app.llama.engine import Engine
from app.messages import Delta, Done, Generate, JsonFormat, Message, Sampling
from app.settings import LLMSettings

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "ignore_eos")


def application(engine: Engine) -> Starlette:
    """Routes: POST /v1/chat/completions, GET /health."""

    async def chat(request: Request) -> Response:
        return StreamingResponse(_events(engine, _asked(await request.json())), media_type="text/event-stream")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/health", health)])


async def _events(engine: Engine, request: Generate) -> AsyncIterator[bytes]:
    async for item in engine.generate(request):
        yield b"data: " + json.dumps(_chunk(item)).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _chunk(item: Delta | Done) -> dict[str, Any]:
    frame: dict[str, Any] = {"id": "chatcmpl", "object": "chat.completion.chunk", "created": 0, "model": "ours"}
    if isinstance(item, Delta):
        return frame | {"choices": [{"index": 0, "delta": {"content": item.text}, "finish_reason": None}]}
    usage = {"prompt_tokens": item.usage.prompt_tokens, "completion_tokens": item.usage.completion_tokens}
    ends = [{"index": 0, "delta": {}, "finish_reason": item.finish_reason}]
    return frame | {"choices": ends, "usage": usage}


def _asked(body: dict[str, Any]) -> Generate:
    wanted = body.get("response_format")
    return Generate(
        request_id="benchmark",
        model="benchmark",
        messages=tuple(Message.model_validate(message) for message in body["messages"]),
        max_tokens=body["max_tokens"],
        sampling=Sampling.model_validate({name: body[name] for name in SAMPLING if name in body}),
        response_format=JsonFormat(json_schema=wanted["json_schema"]["schema"]) if wanted else None,
    )


def main() -> None:
    """Load the model and serve it on loopback."""
    path, port, settings = sys.argv[1:]
    engine = Engine(Path(path), LLMSettings.model_validate_json(settings))
    uvicorn.run(application(engine), host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
