"""An adapter is promoted on a running server under load, tried out by some and by nobody, and taken back."""

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import httpx
import pytest
from gguf_factory import Shape, random_adapter

from app.promotion import SWITCH_S
from tests.acceptance.conftest import ROOT, Server

pytestmark = pytest.mark.integration

DEMO = Shape(embedding=160, layers=5, heads=5, kv_heads=5, feed_forward=416)
ASKED: dict[str, Any] = {
    "model": "mindfu-demo",
    "messages": [{"role": "user", "content": "What are you?"}],
    "max_tokens": 24,
    "temperature": 0,
    "rag": False,
}


def mindfu(server: Server, *arguments: str) -> dict[str, object]:
    """A command, as a user types it; what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments, "--json"],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        env={**os.environ, "MINDFU_HOME": str(server.home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module", autouse=True)
def loud(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`mindfu-demo@loud`, whose weights are noise; of this seed, that answers without a near-tie."""
    file = random_adapter(tmp_path_factory.mktemp("adapter") / "any.gguf", DEMO, seed=245, rank=8)
    mindfu(server, "adapters", "add", "mindfu-demo@loud", str(file))


async def test_a_promotion_and_a_rollback_under_load_fail_no_request(server: Server):
    """Every answer is a 200 and wholly of one adapter; the rollback gives the base's answer back to the letter."""
    answers: list[tuple[int, str]] = []
    over = asyncio.Event()
    async with httpx.AsyncClient(base_url=server.url, timeout=180) as http:

        async def said(model: str = "mindfu-demo") -> tuple[int, str]:
            answer = await http.post("/v1/chat/completions", json=ASKED | {"model": model})
            return answer.status_code, answer.json()["choices"][0]["message"]["content"]

        async def ask() -> None:
            while not over.is_set():
                answers.append(await said())

        async def more(count: int) -> None:
            wanted = len(answers) + count
            while len(answers) < wanted:  # noqa: ASYNC110 — answers come from another process
                await asyncio.sleep(0.02)

        base, loud = [(await said(f"mindfu-demo:{name}"))[1] for name in ("base", "loud")]
        assert base != loud
        crowd = [asyncio.create_task(ask()) for _ in range(4)]
        await more(8)
        promoted = await asyncio.to_thread(mindfu, server, "promote", "mindfu-demo@loud", "--force")
        await more(8)
        assert answers[-1] == (200, loud)
        back = await http.post("/models/mindfu-demo/rollback")
        await more(8)
        over.set()
        await asyncio.gather(*crowd)
        models = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
    assert {status for status, _ in answers} == {200}
    assert {text for _, text in answers} == {base, loud}
    assert answers[-1] == (200, base)
    assert (promoted["champion"], promoted["engines"], promoted["gateways"]) == ("loud", 1, 1)
    assert (back.status_code, back.json()["champion"], back.json()["previous"]) == (200, None, "loud")
    assert back.json()["seconds"] < SWITCH_S
    assert models["mindfu-demo:loud"]["loaded"]


async def test_a_canary_answers_whole_conversations_and_a_shadow_nobody(server: Server):
    """Both by one request each; a rollback ends the trial."""
    tried = {"version": "loud", "force": True, "reason": "a trial"}
    async with httpx.AsyncClient(base_url=server.url, timeout=180) as http:

        async def conversation() -> tuple[str, ...]:
            """Which weights gave each of its two answers."""
            said, whose = list(ASKED["messages"]), []
            for _ in range(2):
                told = (
                    await http.post("/v1/chat/completions", json=ASKED | {"messages": said, "max_tokens": 8})
                ).json()
                whose.append(told["system_fingerprint"])
                said += [told["choices"][0]["message"], {"role": "user", "content": "And?"}]
            return tuple(whose)

        assert (await http.post("/models/mindfu-demo/promote", json=tried | {"canary": 0.5})).status_code == 200
        seen = set()
        async with asyncio.timeout(60):
            while len(seen) < 2:
                seen.add(await conversation())
        assert all(first == second for first, second in seen)
        assert (await http.post("/models/mindfu-demo/rollback")).json()["trial"] is None
        assert (await http.post("/models/mindfu-demo/promote", json=tried | {"shadow": 1.0})).status_code == 200
        shown = (await http.post("/v1/chat/completions", json=ASKED)).json()["choices"][0]["message"]["content"]
        async with asyncio.timeout(60):
            while not (shadows := (await http.get("/models/mindfu-demo/serving")).json()["shadows"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await http.post("/models/mindfu-demo/rollback")
    assert shadows[0]["shown"]["content"] == shown
    assert shadows[0]["answer"]["content"] != shown
