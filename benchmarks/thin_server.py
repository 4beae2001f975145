"""Our engine behind the thinnest HTTP server: what `benchmarks.engine` measures beside llama-server.

    python -m benchmarks.thin_server FILE.gguf PORT '{"slots": 16, "window": 2048}'

The third argument is LLMSettings as JSON. Speaks just enough of OpenAI's chat completions for the benchmarks.
No checks, no records, no retrieval: the whole graph has a benchmark of its own, `benchmarks.serving`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.llama.engine import Engine
from app.messages import Delta, Done, Generate, JsonFormat, Message, Sampling
from app.settings import LLMSettings

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "ignore_eos")
HEADERS = [(b"content-type", b"text/event-stream")]
WHOLE = [(b"content-type", b"application/json")]


def application(engine: Engine) -> ASGIApp:
    """Answers whatever is posted, wherever, as a chat completion."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        asked = json.loads(body) if body else {"stream": True}
        if not asked.get("stream"):
            data = json.dumps(await _whole(engine, asked)).encode()
            await send({"type": "http.response.start", "status": 200, "headers": WHOLE})
            await send({"type": "http.response.body", "body": data})
            return
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        if body:
            async for item in engine.generate(_asked(asked)):
                data = b"data: " + json.dumps(_chunk(item)).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


async def _whole(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    items = [item async for item in engine.generate(_asked(asked))]
    message = {"role": "assistant", "content": "".join(item.text for item in items if isinstance(item, Delta))}
    frame = _chunk(items[-1])
    return frame | {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": frame["choices"][0]["finish_reason"]}],
    }


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
    uvicorn.run(
        application(engine), host="127.0.0.1", port=int(port), log_level="warning", access_log=False, lifespan="off"
    )


if __name__ == "__main__":
    main()
