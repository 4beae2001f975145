"""Bad input is answered with a 4xx that names what is wrong, and nothing is half done."""

import io
import zipfile

import openai
import pytest

from tests.acceptance.conftest import Server

pytestmark = pytest.mark.integration

HI = [{"role": "user", "content": "hi"}]


def bomb() -> bytes:
    """A .docx of some kilobytes that unpacks to a gigabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w") as file:
            for _ in range(256):
                file.write(bytes(4 * 2**20))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "data", "statuses"),
    [
        ("broken.pdf", "application/pdf", b"%PDF-1.7\nnothing behind it", {422}),
        ("large.pdf", "application/pdf", b"%PDF-1.7\n" + bytes(6 * 2**20), {422}),
        ("bomb.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", bomb(), {413, 422}),
        ("empty.txt", "text/plain", b"", {400, 422}),
        ("program.txt", "text/plain", b"MZ\x90\x00\x03\x00\x00\x00\x04\x00" * 50, {415, 422}),
        ("archive.xyz", "application/octet-stream", b"\x00\x01\x02" * 100, {415, 422}),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_hostile_file_is_refused_and_leaves_nothing(
    server: Server, name: str, kind: str, data: bytes, statuses: set[int]
):
    """Refused by name, and not to be found in the list."""
    with server.http() as http:
        answer = http.post("/v1/documents/upload", files={"file": (name, data, kind)})
        listed = http.get("/v1/documents").json()["data"]
    assert answer.status_code in statuses, answer.text
    assert name in answer.json()["error"]["message"]
    assert name not in {document["title"] for document in listed}


def test_a_prompt_over_the_window_is_a_400_with_both_numbers(server: Server):
    """Never a silent truncation. The window of the demo model is 2048."""
    with server.openai() as client, pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(
            model="mindfu-demo", messages=[{"role": "user", "content": "word " * 5000}], stream=True
        )
    assert refusal.value.code == "context_length_exceeded"
    assert "maximum context length is 2048 tokens" in refusal.value.message


def test_an_unknown_model_is_a_404(server: Server):
    """With the names that are served."""
    with server.openai() as client, pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert refusal.value.code == "model_not_found"
    assert "mindfu-demo" in refusal.value.message


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/documents/doc_absent", None, 404),
        ("DELETE", "/v1/documents/doc_absent", None, 404),
        ("GET", "/v1/conversations/not-an-id", None, 404),
        ("GET", "/v1/conversations/00000000-0000-0000-0000-000000000000", None, 404),
        ("GET", "/v1/conversations?limit=0", None, 400),
        ("POST", "/v1/documents", {"content": ""}, 400),
        ("POST", "/v1/documents", {"content": "x", "collection": "../../etc"}, 400),
        ("POST", "/v1/documents", {"content": "x", "metadata": {"a": {"b": 1}}}, 400),
        ("POST", "/v1/documents/query", {"query": "x", "top_k": 0}, 400),
        ("POST", "/v1/documents/query", {"query": "x", "collections": ["../x"]}, 400),
        ("POST", "/v1/chat/completions", {"model": "mindfu-demo", "messages": HI, "n": 17}, 400),
        ("POST", "/v1/chat/completions", {"model": "mindfu-demo", "messages": HI, "max_tokens": 10**12}, 400),
        ("POST", "/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": [[1, 2]]}, 400),
        ("POST", "/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "word " * 9000}, 400),
        ("PATCH", "/v1/models", None, 405),
    ],
)
def test_the_caller_s_fault_is_a_4xx(server: Server, method: str, path: str, body: object, status: int):
    """In OpenAI's shape, with all four keys."""
    with server.http() as http:
        answer = http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
