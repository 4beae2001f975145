"""What OpenAI's endpoints have in common: citations, usage, errors, embeddings, models."""

import base64

import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse
from pydantic import ValidationError

from app.dialects import openai
from app.errors import InvalidRequest, Overloaded, Unauthorized, UnsupportedOption
from app.messages import ModelCard, Passage
from tests.openai_schema import validate

BASE = "http://localhost/"
SOURCE = Passage(document_id="doc_1", collection="c", title="a.pdf", chunk=3, text="x", score=0.8, start=0, end=1)
CARD = ModelCard(name="m", window=2048, parameters=1, file_bytes=1, description="")


def test_citations_are_annotations_of_known_sources_only():
    """[1] is the first source; [2] and [0] are nobody's."""
    assert openai.annotations("a [1] b [2] [0]", [SOURCE], BASE) == [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": 2,
                "end_index": 5,
                "title": "a.pdf",
                "url": "http://localhost/v1/documents/doc_1",
            },
        }
    ]


def test_a_fingerprint_changes_with_the_weights_and_with_the_software():
    """And with nothing else: clients compare it to know whether a seed still means the same."""
    told = openai.fingerprint(CARD, None, "1.0")
    assert told == openai.fingerprint(CARD.model_copy(), None, "1.0")
    others = [(CARD, "v1", "1.0"), (CARD, None, "1.1"), (CARD.model_copy(update={"file_bytes": 2}), None, "1.0")]
    assert told not in {openai.fingerprint(*other) for other in others}


def test_embeddings_come_as_floats_or_base64():
    """Both hold the same numbers, little-endian 32-bit in base64."""
    vectors = np.array([[0.5, -1.0]], dtype=np.float32)
    floats = openai.embeddings(vectors, "m", 3, "float")
    assert CreateEmbeddingResponse.model_validate(floats, strict=True).data[0].embedding == [0.5, -1.0]
    encoded = openai.embeddings(vectors, "m", 3, "base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == [0.5, -1.0]


@pytest.mark.parametrize(("field", "param"), [({"input": [1, 2]}, "input"), ({"dimensions": 256}, "dimensions")])
def test_embeddings_refuse_what_the_model_cannot(field: dict[str, object], param: str):
    """Token ids of another tokenizer, and other dimensions, with the reason."""
    request = openai.EmbeddingRequest.model_validate({"model": "m", "input": "x", **field})
    with pytest.raises(UnsupportedOption) as refusal:
        request.texts("m", 384)
    assert refusal.value.param == param


def test_an_empty_text_cannot_be_embedded():
    """Nor an empty list of them."""
    with pytest.raises(InvalidRequest):
        openai.EmbeddingRequest(model="m", input=["a", ""]).texts("m", 384)
    with pytest.raises(ValidationError):
        openai.EmbeddingRequest(model="m", input=[])


@pytest.mark.parametrize(
    "field",
    [{"input": 5}, {"input": [True]}, {"dimensions": "384"}, {"encoding_format": "hex"}, {"model": ""}, {"extra": 1}],
)
def test_embeddings_take_no_wrong_types(field: dict[str, object]):
    """1 is not "1", and true is no number."""
    with pytest.raises(ValidationError):
        openai.EmbeddingRequest.model_validate({"model": "m", "input": "x", **field})


def test_errors_have_all_four_keys():
    """Clients read message, type, param and code."""
    assert openai.error(Overloaded(8, 8, 1.0))["error"]["type"] == "rate_limit_error"
    assert openai.error(Unauthorized())["error"] == {
        "message": str(Unauthorized()),
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }


def test_models_say_what_they_can():
    """The window of one that chats, the dimensions of one that embeds."""
    chats, embeds = openai.language_model("m:base", 1, CARD, "m"), openai.embedding_model("e", 1, 384)
    validate("ListModelsResponse", {"object": "list", "data": [chats, embeds]})
    assert (chats["context_window"], chats["root"], chats["capabilities"]["embeddings"]) == (2048, "m", False)
    assert (embeds["dimensions"], embeds["capabilities"]["chat"], embeds["capabilities"]["embeddings"]) == (
        384,
        False,
        True,
    )
