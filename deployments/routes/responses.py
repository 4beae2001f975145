"""POST /v1/responses and what belongs to it. A response is a turn of the conversations, found by its id."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from fastapi import APIRouter, Query, Request, Response

from app.dialects.events import Json
from app.dialects.openai_filters import matches
from app.dialects.response_items import input_items, output_items, response_of
from app.dialects.response_stream import Head, ResponseRenderer, request_id, response_id, retold
from app.dialects.response_tools import FileSearch
from app.dialects.responses import Include, InputRequest, ResponsesRequest
from app.errors import (
    ContextTooLong,
    InvalidRequest,
    NotFound,
    Unavailable,
    UnknownPreviousResponse,
    UnsupportedOption,
)
from app.messages import Generate, Measure, Message
from app.responses import Stored
from app.shelves import Shelved
from app.tools.runner import used
from app.truncation import without_oldest
from deployments.answering import Opened, Within
from deployments.calls import call
from deployments.routes.answers import ask_of, respond
from deployments.routes.bodies import Route
from deployments.routes.callers import Tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway

Included = Annotated[list[Include] | None, Query()]
IncludedInBrackets = Annotated[list[Include] | None, Query(alias="include[]")]  # as OpenAI's SDKs write lists


class Before(NamedTuple):
    """What a request goes on from. named: the items that its input names, by their ids."""

    history: tuple[Message, ...] = ()
    conversation_id: str | None = None
    named: Mapping[str, Json] = {}


def routes(gateway: "Gateway") -> APIRouter:
    """The routes of one gateway."""
    router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=Route)

    @router.post("")
    async def create(tenant: Tenant, request: Request, body: ResponsesRequest) -> Response:
        """Answer, from the documents where they hold something."""
        return await _answer(gateway, tenant, request, body)

    @router.post("/input_tokens")
    async def count(tenant: Tenant, request: Request, body: InputRequest) -> Json:
        """The tokens of a prompt, by the model's own tokenizer, without passages."""
        body.require_known()
        model, before = gateway.served(body.model or gateway.settings.llm.name), await _before(gateway, tenant, body)
        kit = await gateway.tooling.kit(request.state.caller, body.server_tools)
        prompt = body.generate(request.state.request_id, tenant, model, before.history, before.named, kit.tools)
        measure: Measure = await call("language model", gateway.llm, "measure", prompt, ())
        return {"object": "response.input_tokens", "input_tokens": measure.prompt_tokens}

    @router.get("/{id_}")
    async def get(
        tenant: Tenant,
        id_: str,
        include: Included = None,
        bracketed: IncludedInBrackets = None,
        *,
        stream: bool = False,
    ) -> Json:
        """A stored response."""
        if stream:
            raise InvalidRequest("Only responses made in the background can be streamed again; leave it out.", "stream")
        stored = await _stored(gateway, tenant, id_)
        included = {*(include or ()), *(bracketed or ())}
        carried, results = (of in included for of in ("reasoning.encrypted_content", "file_search_call.results"))
        return retold(_head(id_, stored, carried=carried, results=results), stored.turn)

    @router.delete("/{id_}")
    async def delete(tenant: Tenant, id_: str) -> Json:
        """Forget a response."""
        await _stored(gateway, tenant, id_)
        await gateway.recorder.read(gateway.responses.delete(tenant, request_id(id_)))
        return {"id": id_, "object": "response", "deleted": True}

    @router.post("/{id_}/cancel")
    async def cancel(tenant: Tenant, id_: str) -> Json:
        """Refused: only responses that are made in the background can be cancelled, and there are none."""
        await _stored(gateway, tenant, id_)
        raise InvalidRequest("Cannot cancel a synchronous response.")

    @router.get("/{id_}/input_items")
    async def list_input_items(
        tenant: Tenant,
        id_: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Json:
        """What the model was asked, the instructions excluded. The latest first, if not asked otherwise."""
        stored = await _stored(gateway, tenant, id_)
        head = _head(id_, stored)
        items = input_items(stored.spoken, head.own, head.customs)
        return _page(items if order == "asc" else items[::-1], limit, after)

    return router


async def _answer(gateway: "Gateway", tenant: str, request: Request, body: ResponsesRequest) -> Response:
    body.require_known()
    model, before = gateway.served(body.model), await _before(gateway, tenant, body)
    caller, most = request.state.caller, body.max_tool_calls
    kit = await gateway.tooling.kit(caller, body.server_tools, rag=body.rag, max_calls=most)
    asked = body.generate(request.state.request_id, tenant, model, before.history, before.named, kit.tools)
    generate = await _fitting(gateway, asked) if body.truncation == "auto" else asked
    echo = body.echo(int(time.time()), dropped=len(asked.messages) - len(generate.messages))
    ask = ask_of(request, generate, rag=body.rag, extras=body.kept(echo), kit=kit)
    if body.file_search is not None:
        ask = replace(ask, within=await _within(gateway, tenant, body, body.file_search))
    query = _query(generate.messages)
    if before.conversation_id:
        ask = replace(ask, conversation_id=before.conversation_id)

    def renderer(opened: Opened) -> ResponseRenderer:
        place = (opened.sources, opened.conversation_id)
        return ResponseRenderer(
            Head(
                response_id(generate.request_id),
                model,
                echo,
                *place,
                carried=body.carries_reasoning(),
                query=query,
                results=body.tells_results(),
            )
        )

    try:
        return await respond(gateway, ask, renderer, stream=body.stream)
    except ContextTooLong as exc:
        exc.param = "input"  # what this dialect calls it
        raise


async def _within(gateway: "Gateway", tenant: str, body: ResponsesRequest, search: FileSearch) -> Within:
    """The files to search. Raises NotFound for a vector store that the tenant does not have."""
    if body.rag is not None:
        message = "'rag' and the tool file_search both say what to search; send one of them."
        raise UnsupportedOption(message, "rag")
    files: dict[str, Shelved] = {}
    for store in search.vector_store_ids:
        files |= await gateway.recorder.read(gateway.shelves.searched(tenant, store))
    if search.filters is not None:
        files = {id_: file for id_, file in files.items() if matches(search.filters, file.attributes)}
    ranking = search.ranking_options
    return Within(
        tuple(dict.fromkeys(search.vector_store_ids)),
        files,
        search.max_num_results,
        ranking.score_threshold if ranking else None,
    )


def _query(messages: Sequence[Message]) -> str:
    """What files are searched for."""
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


async def _before(gateway: "Gateway", tenant: str, body: InputRequest) -> Before:
    """What a request goes on from, and what it names."""
    if body.previous_response_id is not None and body.conversation_id is not None:
        message = "'previous_response_id' and 'conversation' both say what to go on from; send one of them."
        raise InvalidRequest(message, "conversation")
    named = await _named(gateway, tenant, body.references())
    if body.previous_response_id is not None:
        previous = await _find(gateway, tenant, body.previous_response_id)
        if previous is None:
            raise UnknownPreviousResponse(body.previous_response_id)
        return Before(previous.history, previous.conversation_id, named)
    if body.conversation_id is not None:
        latest = await gateway.recorder.read(gateway.responses.latest(tenant, body.conversation_id))
        return Before(latest.history, latest.conversation_id, named)
    return Before(named=named)


async def _named(gateway: "Gateway", tenant: str, ids: frozenset[str]) -> Mapping[str, Json]:
    """The items of ours with these ids, those that there are."""
    found: dict[str, Json] = {}
    for id_ in {response for item in ids if (response := response_of(item))}:
        if stored := await _find(gateway, tenant, id_):
            head = _head(id_, stored)
            output = output_items(
                stored.turn.answer, head.own, status="completed", customs=head.customs, done=head.done
            )
            found |= {item["id"]: item for item in (*input_items(stored.spoken, head.own, head.customs), *output)}
    return found


async def _find(gateway: "Gateway", tenant: str, id_: str) -> Stored | None:
    """A stored response. Raises Unavailable where it may be among the turns that wait to be recorded."""
    if not id_.startswith("resp_"):
        return None
    stored = await gateway.recorder.read(gateway.responses.find(tenant, request_id(id_)))
    if stored is None and gateway.recorder.pending():
        raise Unavailable("conversation store", "turns wait to be recorded, and this one may be among them")
    return stored


async def _stored(gateway: "Gateway", tenant: str, id_: str) -> Stored:
    stored = await _find(gateway, tenant, id_)
    if stored is None:
        raise NotFound("response", id_)
    return stored


def _head(id_: str, stored: Stored, *, carried: bool = False, results: bool = False) -> Head:
    turn = stored.turn
    echo = turn.extras["response"]
    assert isinstance(echo, dict)
    return Head(
        id_,
        turn.model,
        echo,
        turn.sources,
        stored.conversation_id,
        carried=carried,
        query=_query(stored.spoken),
        results=results,
        used=used(turn.extras),
    )


async def _fitting(gateway: "Gateway", request: Generate) -> Generate:
    """A request that leaves room for its answer, as far as may be: what it asks for, or a quarter of the window."""
    texts = tuple(message.content for message in request.messages)
    while True:
        measure: Measure = await call("language model", gateway.llm, "measure", request, texts)
        excess = measure.prompt_tokens + (request.max_tokens or measure.window // 4) - measure.window
        shorter = without_oldest(request.messages, measure.text_tokens, excess) if excess > 0 else request.messages
        if len(shorter) == len(request.messages):
            return request
        request = request.model_copy(update={"messages": shorter})
        texts = tuple(message.content for message in shorter)


def _page(items: tuple[Json, ...], limit: int, after: str | None) -> Json:
    """A part of a list. Raises NotFound for an id that is not in it."""
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise NotFound("input item", after)
    begin = 0 if after is None else ids.index(after) + 1
    page = items[begin : begin + limit]
    return {
        "object": "list",
        "data": list(page),
        "has_more": begin + limit < len(items),
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
    }
