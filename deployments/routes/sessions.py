"""POST /chat, whose history is on the server, and POST /generate, which has none."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.dialects.events import Event
from app.dialects.openai_messages import internal
from app.dialects.sessions import About, ChatRequest, GenerateRequest, OwnRenderer, OwnRequest, begun_anew, device
from app.errors import InvalidRequest, NotFound, Unavailable
from app.messages import Generate, Measure, Message
from app.responses import INSTRUCTED
from app.sessions import DEFAULT, Session, answered, is_whole
from app.tools.kit import Kit
from app.truncation import without_oldest
from deployments.answering import Ask, Opened
from deployments.calls import call
from deployments.routes.answers import STREAM_HEADERS, ask_of, send
from deployments.routes.bodies import Route
from deployments.routes.callers import tenant
from deployments.together import Answer

if TYPE_CHECKING:
    from deployments.gateway import Gateway


class History(NamedTuple):
    """What a request goes on from. conversation_id: None where nobody knows yet; ours: the session is there already."""

    messages: tuple[Message, ...] = ()
    conversation_id: str | None = None
    ours: bool = False


def routes(gateway: "Gateway") -> APIRouter:
    """The routes of sessions."""
    router = APIRouter(tags=["sessions"], route_class=Route)

    @router.post("/chat")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer, and keep the history; no messages at all begin it anew. See docs/sessions.md."""
        session = _session(request, body)
        model = gateway.served(body.model or gateway.current)
        about = About(model, device(gateway.layers(model)), request.state.x_request_id)
        said = internal(body.messages)
        if not said:
            await gateway.recorder.read(gateway.sessions.move(session, None))
            anew = begun_anew(about._replace(session={"session_id": session.name, "dropped_messages": 0}))
            return _stream_of(anew) if body.stream else JSONResponse(anew)
        kit = await _kit(gateway, request, body)
        before = await _history(gateway, session, said, request.headers.get("x-conversation-id"))
        generate, extras = _generate(gateway, request, body, model, (*before.messages, *said))
        generate = generate.model_copy(update={"tools": kit.tools})
        ask = ask_of(request, generate, rag=body.rag, extras=extras | {"session_id": session.name}, kit=kit)
        dropped = await _dropped(gateway, generate)
        ask = replace(ask, conversation_id=before.conversation_id, dropped=dropped, stream=bool(body.stream))
        told = {"session_id": session.name, "dropped_messages": ask.dropped}
        answer = _kept(gateway, session, before, gateway.answering.answer(ask))
        return await _respond(answer, ask, about._replace(session=told), stream=body.stream)

    @router.post("/generate")
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Answer one prompt."""
        model = gateway.served(body.model or gateway.current)
        said = (Message(role="user", content=body.prompt),)
        asked, extras = _generate(gateway, request, body, model, said)
        ask = replace(ask_of(request, asked, rag=body.rag or False, extras=extras), stream=bool(body.stream))
        about = About(model, device(gateway.layers(model)), request.state.x_request_id)
        return await _respond(gateway.answering.answer(ask), ask, about, stream=body.stream)

    return router


def _session(request: Request, body: ChatRequest) -> Session:
    """Raises InvalidRequest for a name that the body could not have."""
    header, cookie = request.headers.get("x-session-id"), request.cookies.get("session_id")
    name = body.session_id or header or cookie or DEFAULT
    if len(name) > 128:
        raise InvalidRequest(f"The session's name has {len(name)} characters, the most are 128.", "session_id")
    return Session(tenant(request), request.state.caller.key_id, name)


async def _history(gateway: "Gateway", session: Session, said: Sequence[Message], named: str | None) -> History:
    """named: a conversation, by the client. Raises NotFound for one that is not there; Unavailable."""
    if is_whole(said):
        return History((), named)
    known = named or await gateway.recorder.read(gateway.sessions.conversation(session))
    if known is None:
        return History()
    if gateway.recorder.pending():
        raise Unavailable("session", "turns wait to be recorded in the database, and its last may be among them")
    try:
        latest = await gateway.recorder.read(gateway.responses.latest(session.tenant, known))
    except NotFound:
        if named is not None:
            raise
        return History()  # its conversation was deleted, or its first answer failed
    return History(answered(latest.history), latest.conversation_id, named is None)


def _generate(
    gateway: "Gateway", request: Request, body: OwnRequest, model: str, messages: Sequence[Message]
) -> tuple[Generate, dict[str, Any]]:
    """The request, and what is kept of it: whether its first message is a prompt that is not the session's."""
    prompt = body.system_prompt
    if prompt is None and not any(message.role == "system" for message in messages):
        prompt = gateway.system_prompt
    prompted = (Message(role="system", content=prompt), *messages) if prompt else tuple(messages)
    generate = body.generate(request.state.request_id, tenant(request), model, prompted, settings=gateway.settings.chat)
    return generate, {INSTRUCTED: True} if prompt else {}


async def _dropped(gateway: "Gateway", request: Generate) -> int:
    """How many of the oldest messages have no room: beyond the most tokens of a session, or those of the window."""
    kept = request.messages
    if sum(message.role == "user" for message in kept) < 2:
        return 0
    while True:
        excess, tokens = await _excess(gateway, request.model_copy(update={"messages": kept}))
        shorter = without_oldest(kept, tokens, excess) if excess > 0 else kept
        if len(shorter) == len(kept):
            return len(request.messages) - len(kept)
        kept = shorter


async def _excess(gateway: "Gateway", request: Generate) -> tuple[int, tuple[int, ...]]:
    """Tokens that are too many, and those of each message. What tools cost is no part of the conversation's."""
    texts = tuple(message.content for message in request.messages)
    measure: Measure = await call("language model", gateway.llm, "measure", request, texts)
    beyond_window = measure.prompt_tokens + min(request.max_tokens or 0, measure.window // 4) - measure.window
    said = measure.prompt_tokens
    if request.tools:
        bare: Measure = await call(
            "language model", gateway.llm, "measure", request.model_copy(update={"tools": ()}), ()
        )
        said = bare.prompt_tokens
    return max(said - gateway.settings.chat.max_conversation_tokens, beyond_window), measure.text_tokens


async def _kit(gateway: "Gateway", request: Request, body: ChatRequest) -> Kit:
    """The tools that are asked for; where nobody asks, those that /command switched on, for who may have them."""
    caller, wanted = request.state.caller, body.enable_tools
    if wanted is None:
        wanted = bool(gateway.follower.desired.control.tools) and gateway.tools is not None and caller.may("tools")
    return await gateway.tooling.kit(caller, wanted, rag=body.rag, param="enable_tools")


async def _kept(gateway: "Gateway", session: Session, before: History, answer: Answer) -> Answer:
    """The answer; once it has opened the session goes on with its conversation."""
    async with aclosing(answer):
        async for item in answer:
            if isinstance(item, Opened) and item.conversation_id and not before.ours:
                await gateway.recorder.read(gateway.sessions.move(session, item.conversation_id))
            yield item


async def _respond(answer: Answer, ask: Ask, about: About, *, stream: bool | None) -> Response:
    def renderer(opened: Opened) -> OwnRenderer:
        return OwnRenderer(about._replace(conversation_id=opened.conversation_id, sources=opened.sources))

    return await send(answer, ask.generate.n, renderer, stream=stream)


def _stream_of(told: dict[str, Any]) -> Response:
    return StreamingResponse(iter([Event({"done": True, **told}).framed()]), 200, STREAM_HEADERS, "text/event-stream")
