"""The routes of models and embeddings, over fakes: every object is what OpenAI publishes."""

from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from anthropic.types import ModelInfo
from openai.types import CreateEmbeddingResponse

from app.messages import ModelCard
from deployments.routes import operations
from tests.fakes import Handle
from tests.openai_schema import validate
from tests.server import application

CARD = ModelCard(name="m", window=2048, parameters=1, file_bytes=1, description="a small one", adapters=("v2",))

FURTHER = ModelCard(name="further", window=512, parameters=None, file_bytes=None, description="?", loaded=False)


async def look() -> None:
    pass


async def embed(texts: tuple[str, ...]) -> tuple[np.ndarray, int]:
    return np.ones((len(texts), 3), np.float32), 5


ADAPTERS = {"m": "v2", "m:base": None, "m:v1": "v1", "m:v2": "v2", "further": None, "alias": "v2"}


async def request(method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
    gateway = SimpleNamespace(
        names=tuple(ADAPTERS),
        cards={"m": CARD, "further": FURTHER},
        root=lambda name: "further" if name == "further" else "m",
        adapter=ADAPTERS.__getitem__,
        look=look,
        started_at=1,
        embedder=Handle(embed=embed),
        embedder_name="e",
        embedder_dimension=3,
    )
    transport = httpx.ASGITransport(application(operations.routes(gateway)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.request(method, path, json=body, headers=headers)


async def test_every_name_that_may_be_asked_is_listed_and_found():
    """The champion's name, the bare base, each adapter; with the adapter that answers and whether it is loaded."""
    listed = (await request("GET", "/v1/models")).json()
    validate("ListModelsResponse", listed)
    assert [model["id"] for model in listed["data"]] == [*ADAPTERS, "e"]
    assert [model.get("adapter") for model in listed["data"]] == [*ADAPTERS.values(), None]
    assert [model.get("loaded") for model in listed["data"]] == [True, True, False, True, False, True, None]
    for model in listed["data"]:
        validate("Model", model)
        assert (await request("GET", f"/v1/models/{model['id']}")).json() == model


async def test_anthropics_clients_get_the_list_in_their_form():
    """In pages, forwards and backwards, and one by its name."""
    version = {"anthropic-version": "2023-06-01"}
    seen, after = [], ""
    while True:
        page = (await request("GET", f"/v1/models?limit=4{after}", **version)).json()
        seen += [ModelInfo.model_validate(one, strict=False) for one in page["data"]]
        after = f"&after_id={page['last_id']}"
        if not page["has_more"]:
            break
    assert [one.id for one in seen] == list(ADAPTERS)
    assert (seen[0].max_input_tokens, seen[0].lifecycle) == (2048, "active")
    back = (await request("GET", "/v1/models?limit=2&before_id=m:v2", **version)).json()
    assert ([one["id"] for one in back["data"]], back["has_more"]) == (["m:base", "m:v1"], True)
    assert (await request("GET", "/v1/models/m:v1", **version)).json() == seen[2].model_dump(mode="json")
    assert (await request("GET", "/v1/models?after_id=nothing", **version)).status_code == 404


async def test_an_unknown_model_is_not_found():
    """With the names that are."""
    answer = await request("GET", "/v1/models/org/gpt-9")
    validate("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "m:base" in answer.json()["error"]["message"]


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
async def test_texts_are_embedded(encoding: dict[str, str]):
    """One vector each, in order, with the tokens that they cost."""
    answer = await request("POST", "/v1/embeddings", {"model": "e", "input": ["a", "b"], "dimensions": 3} | encoding)
    body = answer.json()
    CreateEmbeddingResponse.model_validate(
        {**body, "data": [one | {"embedding": []} for one in body["data"]]}, strict=True
    )
    if encoding != {"encoding_format": "base64"}:  # which OpenAI sends too, and does not publish
        validate("CreateEmbeddingResponse", body)
    assert [one["index"] for one in body["data"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "m"}, 404, "model"),
        ({"input": [[1, 2]]}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"dimensions": 4}, 400, "dimensions"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
        ({"truncate": True}, 400, "truncate"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(fields: dict[str, object], status: int, param: str):
    """By the field that is wrong."""
    answer = await request("POST", "/v1/embeddings", {"model": "e", "input": "a"} | fields)
    validate("ErrorResponse", answer.json())
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
