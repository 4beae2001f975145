"""The main job, as a newcomer does it: upload a PDF, ask through a stock client, get a cited answer, find it kept."""

from pathlib import Path

import fpdf
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.acceptance.conftest import Server
from tests.documents import real_pdf

pytestmark = pytest.mark.integration

HANDBOOK = {
    "Refunds": "Customers may return any article within 45 days of delivery. Refunds are paid to the original card. "
    "Opened software is excluded from refunds.",
    "Parking": "Visitors park on level three of the garage. Bicycles belong in the cellar of the north building. "
    "Charging stations for electric cars stand beside the loading dock.",
    "Holidays": "Every employee has thirty days of paid vacation a year. Unused vacation expires at the end of March. "
    "Requests for vacation are approved by the team lead.",
}
QUESTIONS = {
    "Within how many days may customers return an article?": "45 days",
    "Where do visitors park?": "level three",
    "When does unused vacation expire?": "end of March",
}


def handbook(path: Path) -> Path:
    """A PDF with a chapter a page."""
    pdf = fpdf.FPDF()
    for chapter, text in HANDBOOK.items():
        pdf.add_page()
        pdf.set_font("helvetica", size=16)
        pdf.cell(text=chapter, new_x="LMARGIN", new_y="NEXT")
        pdf.set_font("helvetica", size=11)
        pdf.multi_cell(0, text=text)
    pdf.output(str(path))
    return path


@pytest.fixture(scope="module")
def uploaded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    file = handbook(tmp_path_factory.mktemp("docs") / "handbook.pdf")
    with server.http() as http:
        answer = http.post("/v1/documents/upload", files={"file": (file.name, file.read_bytes(), "application/pdf")})
        assert answer.status_code == 201, answer.text
        again = http.post("/v1/documents/upload", files={"file": (file.name, file.read_bytes(), "application/pdf")})
    assert again.status_code == 200
    assert again.json() == answer.json() | {"duplicate": True}
    return answer.json()


def ask(server: Server, messages: list[dict[str, str]]) -> tuple[str, ChatCompletionChunk, str]:
    """Stream one answer. Returns its text, the last chunk with sources, and the conversation's id."""
    with server.openai() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="mindfu-demo", messages=messages, stream=True, temperature=0, max_tokens=80
        )
        chunks = list(raw.parse())
        return (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
            chunks[-1],
            raw.headers["x-conversation-id"],
        )


def test_three_questions_are_one_conversation_with_the_right_sources(server: Server, uploaded: dict[str, object]):
    """Each answer names the passage that holds the answer, and the three turns are kept as one conversation."""
    chat: list[dict[str, str]] = []
    ids = set()
    for question, fact in QUESTIONS.items():
        chat.append({"role": "user", "content": question})
        text, last, conversation = ask(server, chat)
        chat.append({"role": "assistant", "content": text})
        ids.add(conversation)
        assert last.choices[0].finish_reason in {"stop", "length"}
        sources = last.model_extra["sources"]
        assert sources[0]["document_id"] == uploaded["id"]
        assert fact in sources[0]["text"], (question, sources)
    (conversation,) = ids
    with server.http() as http:
        kept = http.get(f"/v1/conversations/{conversation}").json()
        listed = http.get("/v1/conversations").json()["data"]
    assert conversation in {entry["id"] for entry in listed}
    assert [turn["answer"]["content"] for turn in kept["turns"]] == [
        m["content"] for m in chat if m["role"] == "assistant"
    ]
    assert [turn["messages"][-1]["content"] for turn in kept["turns"]] == list(QUESTIONS)
    assert all(len(turn["messages"]) == 1 for turn in kept["turns"]), "a turn keeps only what is new"
    assert all(turn["sources"][0]["document_id"] == uploaded["id"] for turn in kept["turns"])


def test_a_pdf_that_nobody_here_wrote_is_quoted_from_the_right_page(server: Server):
    """The form W-2 of the US Internal Revenue Service, as the tax office publishes it."""
    with server.http() as http:
        file = {"file": ("fw2.pdf", real_pdf("fw2.pdf"), "application/pdf")}
        added = http.post("/v1/documents/upload", files=file, data={"collection": "tax", "metadata": '{"year": 2007}'})
        assert added.status_code == 201, added.text
    question = "What is the penalty for information returns that cannot be scanned?"
    with server.openai() as client:
        answer = client.chat.completions.create(
            model="mindfu-demo",
            messages=[{"role": "user", "content": question}],
            max_tokens=60,
            extra_body={"rag": {"collections": ["tax"]}},
        )
    passages = [source for source in answer.model_extra["sources"] if "penalty" in source["text"]]
    assert passages, answer.model_extra["sources"]
    assert (passages[0]["title"], passages[0]["page"]) == (added.json()["title"], 1)


def test_without_streaming_the_answer_carries_usage_and_sources(server: Server, uploaded: dict[str, object]):
    """The whole answer parses in the SDK's strict mode, counts its tokens and lists what it was given."""
    with server.openai() as client:
        answer = client.chat.completions.create(
            model="mindfu-demo",
            messages=[{"role": "user", "content": "Where do visitors park?"}],
            max_tokens=60,
            temperature=0,
        )
    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra["sources"][0]["document_id"] == uploaded["id"]


def test_rag_can_be_switched_off_and_nothing_found_says_so(server: Server, uploaded: dict[str, object]):
    """`"rag": false`, an empty collection, and a question that no passage comes near to: all answer with sources []."""
    question = [{"role": "user", "content": "Where do visitors park?"}]
    with server.openai() as client:
        for rag in (False, {"collections": ["nothing-here"]}, {"min_score": 0.99}):
            answer = client.chat.completions.create(
                model="mindfu-demo", messages=question, max_tokens=8, extra_body={"rag": rag}
            )
            assert answer.model_extra["sources"] == [], rag


def test_a_passage_can_be_found_and_a_deleted_document_cannot(server: Server):
    """Text in, passage out; after the delete nothing of it is listed or found."""
    with server.http() as http:
        added = http.post(
            "/v1/documents", json={"content": "The zeppelin hangar opens at dawn.", "metadata": {"source": "manual"}}
        )
        assert added.status_code == 201, added.text
        document = added.json()
        found = http.post("/v1/documents/query", json={"query": "When does the zeppelin hangar open?"}).json()["data"]
        assert found[0]["document_id"] == document["id"]
        assert document["id"] in {entry["id"] for entry in http.get("/v1/documents").json()["data"]}
        assert http.get(f"/v1/documents/{document['id']}").json()["metadata"] == {"source": "manual"}
        assert http.delete(f"/v1/documents/{document['id']}").status_code == 200
        assert http.get(f"/v1/documents/{document['id']}").status_code == 404
        again = http.post("/v1/documents/query", json={"query": "When does the zeppelin hangar open?"}).json()["data"]
    assert document["id"] not in {passage["document_id"] for passage in again}


def test_the_other_endpoints_answer_the_stock_client(server: Server):
    """Models, embeddings in both encodings, completions, health."""
    with server.openai() as client:
        assert "mindfu-demo" in {model.id for model in client.models.list()}
        assert client.models.retrieve("mindfu-demo").id == "mindfu-demo"
        packed = client.embeddings.create(model="all-MiniLM-L6-v2", input=["one", "two"])
        plain = client.embeddings.create(model="all-MiniLM-L6-v2", input=["one", "two"], encoding_format="float")
        assert [row.embedding for row in packed.data] == [pytest.approx(row.embedding) for row in plain.data]
        assert len(plain.data[0].embedding) == 384
        assert client.completions.create(model="mindfu-demo", prompt="The ", max_tokens=4).usage.completion_tokens <= 4
    with server.http() as http:
        health = http.get("/health")
    assert health.status_code == 200, health.text
    assert health.json()["status"] == "ok"
    assert health.json()["model_key"] == "mindfu-demo"
