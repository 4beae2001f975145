"""One tenant attacks another through the whole gateway: what is another's looks exactly like what never was."""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from tests.gateway import MODEL, Whole, bare, whole

pytestmark = pytest.mark.integration

SECRET = "swordfish"
QUESTION = [{"role": "user", "content": "What is the code of the safe?"}]
TOLD = [{"role": "user", "content": f"Remember {SECRET}."}]


@dataclass(frozen=True)
class Prey:
    """What the owner has: a document, a chat that quotes it, a response, a message of Anthropic's."""

    document: dict[str, Any]
    chat: httpx.Response
    response: dict[str, Any]
    message: dict[str, Any]
    turn: str

    @property
    def conversation(self) -> str:
        return self.chat.headers["x-conversation-id"]


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole(tmp_path_factory.mktemp("tenants")) as opened:
        yield opened


@pytest.fixture(scope="module")
async def owner(gateway: Whole) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http(await gateway.key("owner")) as http:
        yield http


@pytest.fixture(scope="module")
async def thief(gateway: Whole) -> AsyncIterator[httpx.AsyncClient]:
    """With every scope that there is."""
    async with gateway.http(await gateway.key("thief", "chat", "documents", "train", "admin")) as http:
        yield http


@pytest.fixture(scope="module")
async def prey(owner: httpx.AsyncClient) -> Prey:
    document = await owner.post("/v1/documents", json={"content": f"The code of the safe is {SECRET}."})
    chat = await owner.post("/v1/chat/completions", json={"model": MODEL, "messages": QUESTION, "user": SECRET})
    response = await owner.post("/v1/responses", json={"model": MODEL, "input": f"Remember {SECRET}."})
    message = await owner.post("/v1/messages", json={"model": MODEL, "messages": TOLD, "max_tokens": 99})
    kept = (await owner.get(f"/v1/conversations/{chat.headers['x-conversation-id']}")).json()
    assert SECRET in chat.text  # from the passage: the owner is answered from it
    return Prey(document.json(), chat, response.json(), message.json(), kept["turns"][0]["id"])


def masked(answer: httpx.Response, *ids: str) -> tuple[int, str, dict[str, str]]:
    """An answer without what tells one request from another."""
    text = re.sub(r"req_[0-9a-f]{32}", "REQUEST", answer.text)
    for id_ in ids:
        text = text.replace(id_, "ID")
    headers = {name: value for name, value in answer.headers.items() if name not in {"x-request-id", "content-length"}}
    return answer.status_code, text, headers


BY_ID = [
    ("GET", "/v1/documents/{document}", None),
    ("DELETE", "/v1/documents/{document}", None),
    ("GET", "/v1/conversations/{conversation}", None),
    ("DELETE", "/v1/conversations/{conversation}", None),
    ("GET", "/v1/conversations?after={conversation}", None),
    ("GET", "/v1/responses/{response}", None),
    ("DELETE", "/v1/responses/{response}", None),
    ("GET", "/v1/responses/{response}/input_items", None),
    ("POST", "/v1/responses/{response}/cancel", None),
    ("POST", "/v1/feedback", {"turn_id": "{turn}", "rating": "down"}),
    ("POST", "/v1/feedback", {"request_id": "{chat}", "rating": "down"}),
    ("POST", "/v1/feedback", {"request_id": "{response}", "rating": "down"}),
    ("POST", "/v1/feedback", {"request_id": "{message}", "rating": "down"}),
    ("POST", "/v1/responses", {"model": MODEL, "input": "go on", "previous_response_id": "{response}"}),
    ("POST", "/v1/responses", {"model": MODEL, "input": "go on", "conversation": "{conversation}"}),
    ("POST", "/v1/responses/input_tokens", {"input": "go on", "previous_response_id": "{response}"}),
    ("POST", "/v1/responses/input_tokens", {"input": "go on", "conversation": "{conversation}"}),
    ("POST", "/v1/responses", {"model": MODEL, "input": [{"type": "item_reference", "id": "{item}"}]}),
]


@pytest.mark.parametrize(("method", "path", "body"), BY_ID, ids=lambda value: str(value)[:60])
async def test_anothers_thing_answers_like_one_that_never_was(
    thief: httpx.AsyncClient, prey: Prey, method: str, path: str, body: object
):
    """The same status, text and headers to the letter but for the id itself, and a refusal in the dialect's shape."""
    real = {
        "document": prey.document["id"],
        "conversation": prey.conversation,
        "response": prey.response["id"],
        "item": prey.response["output"][-1]["id"],
        "turn": prey.turn,
        "chat": prey.chat.json()["id"],
        "message": prey.message["id"],
    }
    never = {name: _other(id_) for name, id_ in real.items()}
    answers = []
    for ids in (real, never):
        sent = json.loads(_filled(json.dumps(body), ids)) if body else None
        answers.append(await thief.request(method, _filled(path, ids), json=sent))
    theirs, nobodys = answers
    assert masked(theirs, *real.values()) == masked(nobodys, *never.values())
    assert theirs.status_code in {400, 404}
    assert set(theirs.json()["error"]) == {"message", "type", "param", "code"}
    assert SECRET not in theirs.text


NOT_OF_A_TENANT = ("/v1/models/", "/models/")
ATTACKED_ELSEWHERE = (
    "/v1/files/", "/v1/vector_stores/",  # tests/integration/test_files_api.py
    "/train/", "/v1/fine_tuning/",  # tests/integration/test_training_api.py
)  # fmt: skip


def test_no_route_that_takes_an_id_was_forgotten():
    """Whoever adds one adds it above, or says here where it is attacked."""
    attacked = {(method, re.sub(r"{\w+}", "x", path.split("?")[0])) for method, path, _ in BY_ID}
    routes = [route for route in bare().routes if isinstance(route, Route) and route.param_convertors]
    forgotten = {
        route.path
        for route in routes
        if not route.path.startswith((*NOT_OF_A_TENANT, *ATTACKED_ELSEWHERE))
        and not any(route.path_regex.match(path) and method in (route.methods or ()) for method, path in attacked)
    }
    assert forgotten == set()


LISTS = [
    "/v1/documents", "/v1/documents?collection=default", "/v1/conversations", f"/v1/conversations?q={SECRET}",
    f"/v1/conversations?model={MODEL}", "/v1/conversations/export?format=json",
    f"/v1/conversations/export?format=jsonl&q={SECRET}", "/v1/conversations/export?format=text",
]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
async def test_lists_searches_and_exports_hold_nothing_of_anothers(thief: httpx.AsyncClient, prey: Prey, path: str):
    """Empty, as for a tenant that is new."""
    answer = await thief.get(path)
    assert answer.status_code == 200
    assert SECRET not in answer.text
    assert prey.conversation not in answer.text
    assert answer.text.strip() in {"", "[]"} or answer.json()["data"] == []


@pytest.mark.parametrize("header", ["x-tenant", "openai-organization", "openai-project", "x-mindfu-tenant"])
async def test_no_header_or_field_names_a_tenant(thief: httpx.AsyncClient, prey: Prey, header: str):
    """Nor the path, the query or the body: a key alone does."""
    assert (await thief.get("/v1/documents", headers={header: "owner"})).json()["data"] == []
    assert (await thief.get("/v1/documents", params={"tenant": "owner"})).json()["data"] == []
    refused = await thief.post("/v1/documents/query", json={"query": "safe", "tenant": "owner"})
    assert refused.status_code == 400


async def test_answers_quote_no_document_of_anothers(thief: httpx.AsyncClient, prey: Prey):
    """In no dialect, whatever the request says of retrieval; and a search tells no count either."""
    rag = {"top_k": 100, "min_score": -1.0, "collections": ["default", "conversations"]}
    found = await thief.post("/v1/documents/query", json={"query": QUESTION[0]["content"], **rag})
    assert found.json()["data"] == []
    for path, body in (
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 99}),
        ("/v1/responses", {"input": QUESTION[0]["content"]}),
    ):
        for extra in ({}, {"rag": rag}, {"rag": True}):
            answer = await thief.post(path, json={"model": MODEL, **body, **extra})
            assert answer.status_code == 200, answer.text
            assert answer.json()["sources"] == []
            assert SECRET not in answer.text


async def test_a_conversation_of_anothers_is_not_gone_on_with(
    owner: httpx.AsyncClient, thief: httpx.AsyncClient, prey: Prey
):
    """Named by x-conversation-id it is a 404, of each dialect; repeated word for word it is a new one."""
    named = {"x-conversation-id": prey.conversation}
    chat = {"model": MODEL, "messages": QUESTION}
    refused = await thief.post("/v1/chat/completions", json=chat, headers=named)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    refused = await thief.post("/v1/messages", json={**chat, "max_tokens": 99}, headers=named)
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found_error")
    stream = await thief.post("/v1/chat/completions", json={**chat, "stream": True}, headers=named)
    assert (stream.status_code, stream.headers["content-type"]) == (404, "application/json")
    answer = prey.chat.json()["choices"][0]["message"]["content"]
    resent = [*QUESTION, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    guessed = await thief.post("/v1/chat/completions", json={"model": MODEL, "messages": resent})
    assert guessed.headers["x-conversation-id"] != prey.conversation
    kept = (await owner.get(f"/v1/conversations/{prey.conversation}")).json()
    assert len(kept["turns"]) == 1


async def test_the_same_content_is_no_duplicate_of_anothers(thief: httpx.AsyncClient, prey: Prey):
    """Else an upload would tell whether somebody has a text."""
    same = await thief.post("/v1/documents", json={"content": f"The code of the safe is {SECRET}."})
    assert (same.status_code, same.json()["duplicate"]) == (201, False)
    assert same.json()["id"] != prey.document["id"]
    assert (await thief.delete(f"/v1/documents/{same.json()['id']}")).status_code == 200


async def test_a_request_id_of_anothers_names_ones_own_turn(thief: httpx.AsyncClient, prey: Prey):
    """Sent by both, it is two turns', of which each tenant sees its own."""
    chosen = {"x-request-id": prey.chat.headers["x-request-id"]}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "mine"}]}
    assert (await thief.post("/v1/chat/completions", json=chat, headers=chosen)).status_code == 200
    judged = await thief.post("/v1/feedback", json={"request_id": chosen["x-request-id"], "rating": "down"})
    assert (judged.status_code, judged.json()["turn_id"] == prey.turn) == (200, False)


async def test_after_all_attacks_the_owner_has_everything(owner: httpx.AsyncClient, prey: Prey):
    """Nothing was changed, judged or deleted. Last in this file."""
    assert (await owner.get(f"/v1/documents/{prey.document['id']}")).json()["id"] == prey.document["id"]
    assert (await owner.get(f"/v1/responses/{prey.response['id']}")).json() == prey.response
    kept = (await owner.get(f"/v1/conversations/{prey.conversation}")).json()
    assert [turn["feedback"] for turn in kept["turns"]] == [[]]
    assert len((await owner.get("/v1/conversations")).json()["data"]) == 3
    assert len((await owner.get("/v1/documents")).json()["data"]) == 1


def _other(id_: str) -> str:
    """An id of the same form."""
    return re.sub(r"[0-9a-f](?=[^0-9a-f]*$)", lambda digit: "0" if digit[0] != "0" else "1", id_)


def _filled(text: str, ids: dict[str, str]) -> str:
    for name, id_ in ids.items():
        text = text.replace("{" + name + "}", id_)
    return text
