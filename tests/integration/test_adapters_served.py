"""Adapters by name through the whole gateway, on a real engine: asked for, promoted under load, rolled back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from gguf_factory import constant_adapter, random_adapter

from app.promotion import SWITCH_S
from deployments.llama_cpp import LlamaCpp
from tests.champions import LETTERS, Served, make, serving, settings

pytestmark = pytest.mark.integration

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
async def served(folder: Path, postgres_home: Path, pool: asyncpg.Pool) -> AsyncIterator[Served]:
    async with serving(folder, postgres_home, pool) as served:
        yield served


async def test_each_name_is_answered_by_what_it_names(served: Served):
    """And the turn says by what."""
    said = {model: await served.said(f"mindfu-demo{model}") for model in ("", ":base", ":v1", ":v2")}
    assert said == {"": "abcde", ":base": "abcde", ":v1": "xxxxx", ":v2": "yyyyy"}
    listed = (await served.http.get("/v1/conversations")).json()["data"]
    turns = [(await served.http.get(f"/v1/conversations/{one['id']}")).json()["turns"][0] for one in listed]
    assert {(turn["model"], turn["adapter"]) for turn in turns} == {
        ("mindfu-demo", None), ("mindfu-demo:base", None), ("mindfu-demo:v1", "v1"), ("mindfu-demo:v2", "v2"),
    }  # fmt: skip


async def test_every_dialect_takes_an_adapters_name(served: Served):
    """Completions, responses and messages as well as chats; and their tokens are counted."""
    hi, few = [{"role": "user", "content": "hi"}], {"temperature": 0, "model": "mindfu-demo:v1"}
    for path, body, told in (
        ("/v1/completions", {"prompt": "hi", "max_tokens": 3}, lambda got: got["choices"][0]["text"]),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 3}, lambda got: got["output"][0]["content"][0]["text"]),
        ("/v1/messages", {"messages": hi, "max_tokens": 3}, lambda got: got["content"][0]["text"]),
    ):
        answer = await served.http.post(path, json=body | few)
        assert (answer.status_code, told(answer.json())) == (200, "xxx"), answer.text
    counted = await served.http.post("/v1/messages/count_tokens", json={"model": "mindfu-demo:v1", "messages": hi})
    assert counted.json()["input_tokens"] > 0


async def test_an_unknown_version_is_not_found(served: Served):
    """With the names that are."""
    answer = await served.chat("mindfu-demo:v9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "mindfu-demo:v1, mindfu-demo:v2" in answer.json()["error"]["message"]


async def test_models_tell_what_answers_and_what_is_loaded(served: Served):
    """The champion under the model's own name. A spare adapter is loaded when asked for, and the one before it goes."""
    await promote(served, "v1")
    await served.said("mindfu-demo:v2")
    await served.said("mindfu-demo:v3")
    models = {model["id"]: model for model in (await served.http.get("/v1/models")).json()["data"]}
    told = {name: (models[f"mindfu-demo{name}"]["adapter"], models[f"mindfu-demo{name}"]["loaded"])
            for name in ("", ":base", ":v1", ":v2", ":v3")}  # fmt: skip
    assert told == {
        "": ("v1", True), ":base": (None, True), ":v1": ("v1", True), ":v2": ("v2", False), ":v3": ("v3", True),
    }  # fmt: skip


async def test_the_fingerprint_tells_adapters_apart(served: Served):
    """And stays what it was, whatever else is loaded beside."""
    prints = [
        (await served.chat(model)).json()["system_fingerprint"]
        for model in ("mindfu-demo", "mindfu-demo:v1", "mindfu-demo:v2", "mindfu-demo:base")
    ]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]


async def promote(served: Served, version: str, **body: Any) -> httpx.Response:
    return await served.http.post("/models/mindfu-demo/promote", json={"version": version} | body)


async def test_promotions_and_rollbacks_under_load_fail_no_request(served: Served):
    """Every answer is whole, and of the one adapter that it began with."""
    texts: list[str] = []
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            texts.append(await served.said("mindfu-demo", 40))

    crowd = [asyncio.create_task(ask()) for _ in range(6)]
    seen = {}
    for step, path, body in (
        ("v1", "promote", {"version": "v1"}),
        ("v2", "promote", {"version": "v2"}),
        ("back", "rollback", {"reason": "the test says so"}),
    ):
        answer = await served.http.post(f"/models/mindfu-demo/{path}", json=body)
        assert answer.status_code == 200, answer.text
        seen[step] = answer.json()["seconds"]
        now = len(texts)
        while len(texts) < now + 12:  # noqa: ASYNC110 — those that ran end on the old one, the others are of the new one
            await asyncio.sleep(0.01)
        assert texts[-1] == LETTERS[answer.json()["champion"]] * 40
    done.set()
    await asyncio.gather(*crowd)
    assert set(texts) <= {(ALPHABET * 2)[:40], "x" * 40, "y" * 40}
    assert seen["back"] < SWITCH_S
    history = await served.registry.changes("mindfu-demo")
    assert [(one.kind, one.version, one.before) for one in history] == [
        ("rollback", "v1", "v2"), ("promote", "v2", "v1"), ("promote", "v1", None),
    ]  # fmt: skip


async def test_a_rollback_to_the_base_gives_its_answers_letter_by_letter(served: Served):
    """As if nothing had been promoted."""
    before = await served.said("mindfu-demo", 60)
    await promote(served, "v1")
    assert await served.said("mindfu-demo", 60) == "x" * 60
    assert (await served.http.post("/models/mindfu-demo/rollback")).status_code == 200
    assert await served.said("mindfu-demo", 60) == before


async def test_what_does_not_load_is_never_served(served: Served, folder: Path, tmp_path: Path):
    """An adapter for another shape, and a file that was changed: the answer says why, the champion goes on."""
    await promote(served, "v1")
    await served.registry.add("mindfu-demo", "odd", random_adapter(tmp_path / "odd.gguf"), verdict="passed")
    sabotaged = constant_adapter(tmp_path / "good.gguf", ord("q"))
    await served.registry.add("mindfu-demo", "good", sabotaged, verdict="passed")
    constant_adapter(sabotaged, ord("!"))
    for version, reason in (("odd", "shape"), ("good", "was changed after it had been registered")):
        answer = await promote(served, version)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_promoted")
        assert reason in answer.json()["error"]["message"]
        assert (await served.chat(f"mindfu-demo:{version}")).status_code == 503
    assert await served.said("mindfu-demo") == "xxxxx"
    assert await served.loaded() == ("v1",)


async def test_an_engine_that_starts_holds_the_champion_before_it_is_asked(served: Served, folder: Path):
    """Serve sends no request before the first health check has passed."""
    await promote(served, "v1")
    await promote(served, "v2")
    another = LlamaCpp(settings(folder), served.registry.home, follow=True)
    await another.check_health()
    assert (await another.card()).adapters == ("v2", "v1")
    another.close()


async def test_a_version_registered_a_moment_ago_can_be_asked_for(served: Served, folder: Path):
    """No restart: gateway and engine hear of it."""
    await served.registry.add("mindfu-demo", "v4", folder / "v1.gguf")
    async with asyncio.timeout(5):
        while (await served.chat("mindfu-demo:v4")).status_code == 404:  # noqa: ASYNC110 — until the gateway was told
            await asyncio.sleep(0.01)
    assert await served.said("mindfu-demo:v4") == "xxxxx"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("nothing/promote", {"version": "v1"}, 404, "model_not_found"),
        ("mindfu-demo:v1/promote", {"version": "v1"}, 404, "model_not_found"),
        ("mindfu-demo/promote", {"version": "v9"}, 404, "not_found"),
        ("mindfu-demo/promote", {"version": "../v1"}, 400, "invalid_value"),
        ("mindfu-demo/promote", {"version": "v1", "forced": True}, 400, "invalid_value"),
        ("mindfu-demo/promote", {}, 400, "invalid_value"),
        ("mindfu-demo/rollback", {}, 409, "conflict"),
    ],
)
async def test_what_cannot_be_promoted_is_refused(served: Served, path: str, body: Any, status: int, code: str):
    """By what is wrong with it."""
    answer = await served.http.post(f"/models/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def test_who_answers_is_changed_with_a_train_key_alone(served: Served):
    """A chat key may ask for every adapter, and change nothing."""
    chat, train = await served.gateway.key("t", "chat"), await served.gateway.key("t", "train")
    async with served.gateway.http(chat) as http:
        assert (await http.post("/models/mindfu-demo/promote", json={"version": "v1"})).status_code == 403
    async with served.gateway.http(train) as http:
        assert (await http.post("/models/mindfu-demo/promote", json={"version": "v1"})).status_code == 200
