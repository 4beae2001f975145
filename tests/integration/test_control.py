"""What operators change while the server runs, through the whole gateway, on real engines and a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from engines import alphabet_model, until
from gguf_factory import chain_model, constant_adapter, vocabulary

from app.control import Control
from app.following import Follower
from app.registry import Registry
from app.settings import ChatSettings, FurtherModel, LLMSettings, Settings
from app.steering import place, steer
from deployments.llama_cpp import LlamaCpp
from tests.gateway import Whole, whole

pytestmark = pytest.mark.integration

HI = {"messages": [{"role": "user", "content": "hi"}], "rag": False, "temperature": 0, "repeat_penalty": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control")
    alphabet_model(folder / "base.gguf")
    chain_model(folder / "other.gguf", [vocabulary()[0].index(digit) for digit in "0123456789"])
    constant_adapter(folder / "v1.gguf", ord("x"))
    return folder


def settings(folder: Path) -> Settings:
    """Room for one model at a time, and a further one that is nowhere."""
    further = {
        "other": FurtherModel(model=str(folder / "other.gguf"), description="counts", recommended=True, window=512),
        "absent": FurtherModel(model=str(folder / "absent.gguf")),
        "hub": FurtherModel(model="hf://org/repo/file.gguf"),
    }
    llm = LLMSettings(model=str(folder / "base.gguf"), window=256, threads=1, speculation=0, models=further)
    return Settings(llm=llm, chat=ChatSettings(system_prompt="Be brief."))


@pytest.fixture
async def replica(folder: Path, postgres_home: Path, pool: asyncpg.Pool) -> AsyncIterator[LlamaCpp]:
    await Registry(pool, postgres_home).add("mindfu-demo", "v1", folder / "v1.gguf", verdict="passed")
    replica = LlamaCpp(settings(folder).llm, postgres_home, follow=True)
    await replica.check_health()
    yield replica
    replica.close()


@pytest.fixture
async def gateway(folder: Path, postgres_home: Path, replica: LlamaCpp) -> AsyncIterator[Whole]:
    async with whole(postgres_home, settings(folder), llm=replica) as gateway:
        yield gateway


@pytest.fixture
async def http(gateway: Whole) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http() as http:
        yield http


async def said(http: httpx.AsyncClient, tokens: int = 5, **fields: Any) -> str:
    answer = await http.post("/chat", json=HI | {"max_tokens": tokens} | fields)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["response"]
    return text


async def commanded(http: httpx.AsyncClient, command: str, value: Any = None) -> httpx.Response:
    return await http.post("/command", json={"command": command, "value": value})


async def test_models_tell_what_there_is_to_choose_from(http: httpx.AsyncClient, folder: Path):
    """What exists, what is recommended, what is loaded, and what an adapter was made from."""
    told = (await http.get("/models")).json()
    models = {model["key"]: model for model in told["models"]}
    assert told["current"] == "mindfu-demo"
    assert list(models) == ["mindfu-demo", "mindfu-demo:v1", "other", "absent", "hub"]
    assert [model["exists"] for model in models.values()] == [True, True, True, False, False]
    assert [model["loaded"] for model in models.values()] == [True, False, False, False, False]
    assert [model["current"] for model in models.values()] == [True, False, False, False, False]
    other = models["other"]
    assert (other["filename"], other["description"], other["recommended"]) == ("other.gguf", "counts", True)
    assert (other["context_length"], other["layers"], other["device"]) == (512, 0, "CPU")
    assert other["size_bytes"] == (folder / "other.gguf").stat().st_size < other["vram_estimate"]
    assert (models["mindfu-demo:v1"]["is_finetuned"], models["mindfu-demo:v1"]["base_model"]) == (True, "mindfu-demo")
    assert models["hub"]["source"] == "hf://org/repo/file.gguf"


async def test_a_switch_keeps_the_history_and_drops_no_request(http: httpx.AsyncClient):
    """Answers that run end on their own model; the session goes on with the new one; health says which it is."""
    running = [asyncio.create_task(said(http, 100, session_id=str(number))) for number in range(3)]
    await said(http)
    switched = (await http.post("/model/switch", json={"model_key": "other"})).json()
    assert (switched["status"], switched["model_key"], switched["previous_model_key"]) == (
        "success", "other", "mindfu-demo",
    )  # fmt: skip
    assert {text[:5] for text in await asyncio.gather(*running)} == {"abcde"}
    assert await said(http) == "01234"
    assert (await http.get("/health")).json()["model_key"] == "other"
    latest = (await http.get("/v1/conversations", params={"q": '"01234"'})).json()["data"][0]
    assert latest["turns"] == 2
    again = (await http.post("/model/switch", json={"model_key": "mindfu-demo"})).json()
    assert again["previous_model_key"] == "other"
    assert await said(http) == "abcde"


async def test_an_adapter_can_be_switched_to(http: httpx.AsyncClient, replica: LlamaCpp):
    """It is loaded when the answer comes."""
    assert (await http.post("/model/switch", json={"model_key": "mindfu-demo:v1"})).status_code == 200
    assert (await replica.card()).adapters == ("v1",)
    assert await said(http) == "xxxxx"
    assert await said(http, model="mindfu-demo:base") == "abcde"


@pytest.mark.parametrize(("key", "status"), [("nobody", 404), ("absent", 409), ("", 400), (None, 400)])
async def test_what_cannot_be_loaded_is_not_switched_to(http: httpx.AsyncClient, key: str | None, status: int):
    """Nothing changes."""
    answer = await http.post("/model/switch", json={"model_key": key})
    assert answer.status_code == status, answer.text
    assert await said(http) == "abcde"
    assert (await http.get("/models")).json()["current"] == "mindfu-demo"


async def test_the_system_prompt_is_told_and_set(gateway: Whole, http: httpx.AsyncClient):
    """For /chat and /generate; empty goes back to the settings'."""
    assert (await commanded(http, "system")).json()["current_value"] == "Be brief."
    told = (await commanded(http, "system", "Be verbose.")).json()
    assert (told["status"], told["current_value"]) == ("success", "Be verbose.")
    answer = (await http.post("/chat", json=HI | {"max_tokens": 5})).json()
    turn = (await http.get(f"/v1/conversations/{answer['conversation_id']}")).json()["turns"][0]["id"]
    asked = await gateway.gateway.conversations.asked_of("default", turn)
    assert [message.content for message in asked] == ["Be verbose.", "hi"]
    assert (await commanded(http, "system", "")).json()["current_value"] == "Be brief."


async def test_what_was_set_holds_over_a_restart(folder: Path, postgres_home: Path, replica: LlamaCpp):
    """A new gateway and a new engine go by it."""
    async with whole(postgres_home, settings(folder), llm=replica) as gateway, gateway.http() as http:
        await commanded(http, "system", "Be verbose.")
        await commanded(http, "tools", "off")
        await http.post("/model/switch", json={"model_key": "other"})
    later = LlamaCpp(settings(folder).llm, postgres_home, follow=True)
    await later.check_health()
    await until(lambda: list(later.shelf.warm()) == ["other"])
    async with whole(postgres_home, settings(folder), llm=later) as gateway, gateway.http() as http:
        assert await said(http) == "01234"
        assert (await commanded(http, "system")).json()["current_value"] == "Be verbose."
        assert (await http.get("/models")).json()["current"] == "other"
    later.close()


async def test_layers_that_this_machine_cannot_have_are_refused(http: httpx.AsyncClient):
    """With the remedy; and the model goes on where it was."""
    assert (await commanded(http, "layers")).json()["current_value"] == 0
    answer = await commanded(http, "layers", -1)
    assert answer.status_code == 400
    assert "no GPU" in answer.json()["error"]["message"]
    assert (await commanded(http, "layers", "0")).json()["current_value"] == 0
    assert (await commanded(http, "layers")).json()["message"] == "mindfu-demo runs on: CPU."


async def test_a_model_is_loaded_anew_without_dropping_a_request(http: httpx.AsyncClient, replica: LlamaCpp):
    """What runs ends on the old engine, what comes meanwhile waits for the new one."""
    old = replica.shelf.warm()["mindfu-demo"]
    running = asyncio.create_task(said(http, 200))
    await until(lambda: old.stats().slots_in_use == 1)
    renewing = asyncio.create_task(replica.shelf.renew("mindfu-demo"))
    await until(lambda: not replica.shelf.warm())
    waiting = [asyncio.create_task(said(http, session_id=str(number))) for number in range(3)]
    assert len(await running) == 200
    await renewing
    assert await asyncio.gather(*waiting) == ["abcde"] * 3
    assert replica.shelf.warm()["mindfu-demo"] is not old


async def test_layers_with_which_a_model_does_not_load_are_taken_back(
    replica: LlamaCpp, http: httpx.AsyncClient, pool: asyncpg.Pool, postgres_home: Path
):
    """The engine says why, requests are answered all the time, and the desired state is what it was."""
    from app.errors import Conflict

    registry = Registry(pool, postgres_home)
    with pytest.raises(Conflict, match="no GPU"):
        await place(registry, "mindfu-demo", 7)  # what the route would have refused
    assert (await registry.desired()).control.layers == {}
    assert await said(http) == "abcde"


async def test_mem_tells_what_the_machine_does(http: httpx.AsyncClient):
    """In numbers, and in a sentence."""
    told = (await commanded(http, "mem")).json()
    value = told["current_value"]
    assert 0 < value["process"] < value["memory"]
    assert 0 < value["memory_used"] < value["memory"]
    assert 0 <= value["cpu_percent"] <= 100
    assert told["message"].startswith("CPU ")


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "command"),
    ({"command": "format"}, "command"),
    ({"command": "layers", "value": "many"}, "value"),
    ({"command": "layers", "value": -2}, "value"),
    ({"command": "layers", "value": True}, "value"),
    ({"command": "layers", "value": 10**30}, "value"),
    ({"command": "tools", "value": "maybe"}, "value"),
    ({"command": "tools", "value": 1}, "value"),
    ({"command": "system", "value": 5}, "value"),
    ({"command": "system", "value": "\0"}, "value"),
    ({"command": "mem", "value": "all"}, "value"),
    ({"command": "mem", "values": 1}, "values"),
    ({"command": "system", "value": ["x"]}, "value"),
)


async def test_a_command_that_cannot_be_is_refused_by_name(http: httpx.AsyncClient):
    """And nothing changes."""
    before = (await commanded(http, "system")).json(), (await commanded(http, "layers")).json()
    for body, param in WRONG:
        answer = await http.post("/command", json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param, body
    assert ((await commanded(http, "system")).json(), (await commanded(http, "layers")).json()) == before


async def test_only_operators_change_what_everybody_gets(gateway: Whole):
    """A key for chatting tells, chooses a model for itself, and sets nothing; only an admin's does."""
    async with gateway.http(await gateway.key("acme")) as http:
        assert (await commanded(http, "system")).status_code == 200
        assert (await http.get("/models")).status_code == 200
        assert await said(http, model="other") == "01234"
        for refused in (
            await commanded(http, "system", "Obey."),
            await commanded(http, "tools", "on"),
            await http.post("/model/switch", json={"model_key": "other"}),
            await http.post("/shutdown"),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    async with gateway.http(await gateway.key("acme", "admin")) as http:
        assert (await commanded(http, "system", "Obey.")).status_code == 200


async def test_a_shutdown_needs_a_key_on_this_machine_too(http: httpx.AsyncClient):
    """Where nobody else needs one."""
    answer = await http.post("/shutdown")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    assert "mindfu keys create --scope admin" in answer.json()["error"]["message"]


async def test_every_gateway_follows(pool: asyncpg.Pool, postgres_home: Path):
    """A change returns when all of them go by it."""
    registry = Registry(pool, postgres_home)
    followers = [Follower("gateway", registry, poll_s=60) for _ in range(2)]
    for follower in followers:
        await follower.start()
    before, after = await steer(registry, lambda _: Control(model="m", system_prompt='a "quote"', tools=True))
    assert (before, after) == (Control(), (await registry.desired()).control)
    assert [follower.desired.control for follower in followers] == [after, after]
    for follower in followers:
        await follower.close()
