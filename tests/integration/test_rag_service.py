"""What the RAG service promises, as one story through the whole gateway: documents in, cited answers out."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from app.keys import Keys, pepper
from app.settings import DocumentSettings, LLMSettings, Settings
from tests import documents
from tests.gateway import Whole, whole

pytestmark = pytest.mark.integration

MODEL = "devstral-small-2"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
FILES: dict[str, tuple[str, bytes]] = {
    "harvest.pdf": ("application/pdf", documents.pdf("The wheat was cut on 3 August.")),
    "letter.docx": (DOCX, documents.word(title="Letter")),
    "notes.md": ("text/markdown", b"# Rye\n\nThe rye follows in September.\n"),
    "plain.txt": ("text/plain", b"Oats are sown in March."),
    "code.py": ("text/x-python", b"def barley() -> str:\n    return 'barley is malted in spring'\n"),
}


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    """With the alias that people know the model by."""
    settings = Settings(llm=LLMSettings(aliases=(MODEL,)))
    async with whole(tmp_path_factory.mktemp("service"), settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def key(gateway: Whole) -> str:
    return await gateway.key("farm")


@pytest.fixture(scope="module")
async def http(gateway: Whole, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http(key) as client:
        yield client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("name", FILES)
async def test_files_of_every_kind_are_taken_in_once(http: httpx.AsyncClient, name: str):
    """As curl -F sends them; the same bytes again are found by their SHA-256."""
    kind, data = FILES[name]
    first, again = [await http.post("/v1/documents/upload", files={"file": (name, data, kind)}) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 200), first.text
    assert (first.json()["name"], again.json()["duplicate"]) == (name, True)
    assert first.json()["id"] == again.json()["id"]
    assert len(first.json()["sha256"]) == 64


async def test_a_long_text_is_cut_into_pieces_of_512_characters(http: httpx.AsyncClient):
    """With 50 of overlap at most; found again by a query, with its metadata kept."""
    sentences = " ".join(f"Field number {number} bears crop number {number * 7}." for number in range(100))
    sent = {"content": sentences, "metadata": {"source": "manual"}, "chunk": True}
    made = (await http.post("/v1/documents", json=sent)).json()
    assert made["metadata"] == {"source": "manual"}
    found = (await http.post("/v1/documents/query", json={"query": "field number bears crop", "top_k": 100})).json()
    pieces = [piece for piece in found["data"] if piece["document_id"] == made["id"]]
    assert pieces
    assert (DocumentSettings().chunk_chars, DocumentSettings().overlap_chars) == (512, 50)
    assert made["chunks"] >= len(sentences) / 512


async def test_a_chat_is_answered_from_the_documents(gateway: Whole, key: str, http: httpx.AsyncClient):
    """By the model's alias, with the passage in the prompt and the source in the answer, whole and streamed."""
    client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=_official(gateway))
    whole_answer = await client.chat.completions.create(model=MODEL, messages=user("When was the wheat cut?"))
    assert "3 August" in str(whole_answer.choices[0].message.content)
    assert whole_answer.model == "mindfu-demo"
    stream = await client.chat.completions.create(model=MODEL, messages=user("When was the wheat cut?"), stream=True)
    chunks = [chunk async for chunk in stream]
    assert "3 August" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].model_extra["sources"][0]["title"] == "harvest.pdf"
    without = {"model": MODEL, "messages": user("When was the wheat cut?"), "rag": False}
    assert "3 August" not in (await http.post("/v1/chat/completions", json=without)).text


async def test_a_session_is_answered_from_the_documents_as_well(http: httpx.AsyncClient):
    """By default it may answer with as many tokens as this model's window has: the length yields, not the sources."""
    told = (await http.post("/chat", json={"messages": user("When was the wheat cut?")})).json()
    assert "3 August" in told["response"]
    assert told["sources"][0]["title"] == "harvest.pdf"


async def test_answers_are_kept_and_spent_on_the_key(gateway: Whole, key: str, http: httpx.AsyncClient):
    """For fine-tuning later, and for the bill."""
    await http.post("/v1/chat/completions", json={"model": MODEL, "messages": user("Keep this sentence.")})
    (found,) = (await http.get("/v1/conversations", params={"q": '"keep this sentence"'})).json()["data"]
    kept = (await http.get(f"/v1/conversations/{found['id']}")).json()["turns"][0]
    lines = (await http.get("/v1/conversations/export", params={"q": '"keep this sentence"'})).text.splitlines()
    assert [message["role"] for message in json.loads(lines[0])["messages"]] == ["user", "assistant"]
    keys = Keys(gateway.gateway.recorder.pool, pepper(gateway.home, None) or b"")
    (spent,) = [one for one in await keys.all() if one.id == key.split("_")[1]]
    assert spent.turns >= 1
    assert spent.tokens >= kept["usage"]["prompt_tokens"]
    assert spent.last_used_at is not None


async def test_anthropics_client_is_answered_from_the_documents_too(gateway: Whole, key: str):
    """With its own errors where it is not."""
    async with _official(gateway) as transport:
        client = anthropic.AsyncAnthropic(
            base_url="http://localhost", api_key=key, http_client=transport, max_retries=0
        )
        answer = await client.messages.create(model=MODEL, max_tokens=64, messages=user("When are oats sown?"))
        assert "March" in answer.content[0].text
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="gpt-9", max_tokens=64, messages=user("hi"))
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="mf_wrong").messages.create(
                model=MODEL, max_tokens=64, messages=user("hi")
            )


async def test_a_key_for_documents_alone_may_not_chat(gateway: Whole):
    """A 403 of each dialect, that names the scope."""
    async with gateway.http(await gateway.key("farm", "documents")) as http:
        openai_s = await http.post("/v1/chat/completions", json={})
        anthropics = await http.post("/v1/messages", json={})
    for refused in (openai_s, anthropics):
        assert refused.status_code == 403
        assert refused.json()["error"]["type"] == "permission_error"
        assert "scope 'chat'" in refused.json()["error"]["message"]


async def test_health_tells_the_parts(http: httpx.AsyncClient):
    """And the model that answers."""
    report = (await http.get("/health")).json()
    assert (report["status"], report["model_key"]) == ("ok", "mindfu-demo")
    assert set(report["parts"].values()) == {"ok"}


def _official(gateway: Whole) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(gateway.app)
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")
