"""JSON bodies: what is no JSON, too deep, too much or not to be written again is refused before anyone looks at it."""

import asyncio
import json

import httpx
import pytest
from fastapi import APIRouter
from pydantic import BaseModel, JsonValue

from deployments.routes.bodies import MOST_DEPTH, MOST_VALUES, Route
from tests.server import application
from tests.work import work_s


class Anything(BaseModel):
    value: JsonValue


async def post(body: bytes, kind: str = "application/json") -> httpx.Response:
    router = APIRouter(route_class=Route)

    @router.post("/v1/echo")
    async def echo(body: Anything) -> dict[str, JsonValue]:
        return {"value": body.value}

    transport = httpx.ASGITransport(application(router, max_body=4_000_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.post("/v1/echo", content=body, headers={"content-type": kind})


NESTED: object = []
for _ in range(MOST_DEPTH - 3):  # the object around it and the empty list inside it are levels too
    NESTED = [NESTED]


@pytest.mark.parametrize("value", [NESTED, "é\0", [1, -2.5, True, None], {"a": {"b": []}}, 2**70])
async def test_json_is_read_as_it_is_written(value: object):
    """NUL, large whole numbers and all."""
    answer = await post(json.dumps({"value": value}).encode())
    assert answer.json() == {"value": value}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"value": "\xff"}',
        b'{"value": "\\ud800"}',
        b'{"value": ' + b"[" * 1_000_000,
        b'{"value": ' + b'{"a":' * MOST_DEPTH + b"1" + b"}" * (MOST_DEPTH + 1),
        b'{"value": ' + b"9" * 10_000 + b"}",
        b"[1]",
        b'"value"',
        b"null",
    ],
)
async def test_what_is_no_json_object_is_a_400(body: bytes):
    """In OpenAI's shape, with a reason."""
    answer = await post(body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_number_that_json_does_not_have_is_named(number: str):
    """Wherever it stands: none could be written again."""
    answer = await post(f'{{"value": {{"a": [1.5, {number}]}}}}'.encode())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "value.a[1]")


async def test_a_body_of_another_type_is_a_400():
    """A form is no JSON, whatever it holds."""
    answer = await post(b'{"value": 1}', "text/plain")
    assert (answer.status_code, "application/json" in answer.text) == (400, True)


@pytest.mark.parametrize("item", ["{}", "[]", '""', '{"a":1}'])
def test_millions_of_values_are_refused_before_they_cost_anything(item: str):
    """Validation would make an error of each."""
    body = f'{{"value": [{",".join([item] * (MOST_VALUES + 1))}]}}'.encode()
    answers = list[httpx.Response]()
    assert work_s(lambda: answers.append(asyncio.run(post(body)))) < 1.0
    assert {(answer.status_code, str(MOST_VALUES) in answer.text) for answer in answers} == {(400, True)}
