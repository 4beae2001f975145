"""The routes of models and embeddings, over fakes: every object is what OpenAI publishes."""

from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse

from app.messages import ModelCard
from deployments.routes import operations
from tests.fakes import Handle
from tests.openai_schema import validate
from tests.server import application

CARD = ModelCard(name="m", window=2048, parameters=1, file_bytes=1, description="a small one")

FURTHER = ModelCard(name="further", window=512, parameters=None, file_bytes=None, description="?", loaded=False)


async def look() -> None:
    pass


async def embed(texts: tuple[str, ...]) -> tuple[np.ndarray, int]:
    return np.ones((len(texts), 3), np.float32), 5


async def request(method: str, path: str, body: object = None) -> httpx.Response:
    gateway = SimpleNamespace(
        names=("m", "m:base", "further", "alias"),
        cards={"m": CARD, "further": FURTHER},
        root={"m": "m", "m:base": "m", "alias": "m", "further": "further"}.__getitem__,
        look=look,
        started_at=1,
        embedder=Handle(embed=embed),
        embedder_name="e",
        embedder_dimension=3,
    )
    transport = httpx.ASGITransport(application(operations.routes(gateway)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.request(method, path, json=body)


async def test_every_name_that_may_be_asked_is_listed_and_found():
    """Also those with a colon or a slash in them."""
    listed = (await request("GET", "/v1/models")).json()
    validate("ListModelsResponse", listed)
    assert [model["id"] for model in listed["data"]] == ["m", "m:base", "further", "alias", "e"]
    assert [model.get("loaded") for model in listed["data"]] == [True, True, False, True, None]
    for model in listed["data"]:
        validate("Model", model)
        assert (await request("GET", f"/v1/models/{model['id']}")).json() == model


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
