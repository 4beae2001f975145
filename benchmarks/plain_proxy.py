"""The plainest proxy: what `benchmarks.proxy` measures beside the graph.

    python -m benchmarks.plain_proxy PORT UPSTREAM_URL

Passes bodies on, and answers piece by piece. No keys, no checks, no records.
"""

import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def application(upstream: str) -> Starlette:
    """Passes everything on."""
    http = httpx.AsyncClient(base_url=upstream, timeout=60)

    async def passed(request: Request) -> Response:
        headers = {"content-type": request.headers.get("content-type", "application/json")}
        asked = http.build_request(request.method, request.url.path, content=await request.body(), headers=headers)
        answer = await http.send(asked, stream=True)
        kind = answer.headers["content-type"]
        if kind != "text/event-stream":
            return Response(await answer.aread(), answer.status_code, media_type=kind)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, media_type=kind)

    return Starlette(routes=[Route("/{path:path}", passed, methods=["GET", "POST"])])


if __name__ == "__main__":
    uvicorn.run(
        application(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False
    )
