"""`GET /metrics` of a whole gateway: its own counts, and what the other parts read out."""

from pathlib import Path

import pytest

from tests.gateway import Echo, whole

pytestmark = pytest.mark.integration


class Counting(Echo):
    """A model whose engine has readings."""

    async def stats(self) -> dict[str, float]:
        return {"slots": 8.0, "waiting": 3.0}


async def test_the_page_has_the_numbers_of_every_part(tmp_path: Path):
    """Requests and answers, the engine, what was taken in, and whether somebody trains."""
    async with whole(tmp_path, llm=Counting()) as gateway, gateway.http() as http:
        for text in ("Bob repairs the printer.", "Bob repairs the printer."):  # the second one is known
            (await http.post("/v1/documents", json={"content": text})).raise_for_status()
        assert (await http.post("/v1/documents", json={"content": " "})).status_code == 400
        chat = {"model": "mindfu-demo", "messages": [{"role": "user", "content": "hello"}]}
        (await http.post("/v1/chat/completions", json=chat)).raise_for_status()
        page = (await http.get("/metrics")).raise_for_status().text.splitlines()
    for line in (
        'mindfu_requests_total{route="/v1/documents",status="201"} 1.0',
        'mindfu_requests_total{route="/v1/documents",status="400"} 1.0',
        'mindfu_turns_total{model="mindfu-demo",status="complete"} 1.0',
        'mindfu_tokens_total{kind="prompt",model="mindfu-demo"} 1.0',
        'mindfu_stage_seconds_count{stage="record"} 1.0',
        "mindfu_engine_up 1.0",
        "mindfu_engine_waiting 3.0",
        "mindfu_librarian_documents 1.0",
        "mindfu_librarian_chunks 1.0",
        "mindfu_training_running 0.0",
        "mindfu_spooled_turns 0.0",
    ):
        assert line in page, line
