"""What OpenAI's endpoints have in common: usage, sources, errors; and those of one shape, embeddings and models.

Chat completions and completions are in openai_requests.py (in) and openai_chat.py, openai_completions.py (out).
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.dialects.events import Json
from app.errors import InvalidRequest, MindFuError, UnsupportedOption
from app.messages import ModelCard, Passage, Usage

CHATS = {"chat": True, "completions": True, "responses": True, "tools": True, "vision": False, "embeddings": False}
EMBEDS = dict.fromkeys(CHATS, False) | {"embeddings": True}
CITATION = re.compile(r"\[(\d{1,3})\]")


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=256)
    input: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    def texts(self, model: str, dimension: int) -> list[str]:
        """The texts to embed. Token ids of a foreign tokenizer, and other dimensions than the model's, are refused."""
        if self.dimensions not in (None, dimension):
            message = f"'{model}' makes {dimension} dimensions and cannot make {self.dimensions}."
            raise UnsupportedOption(message, "dimensions")
        texts = [self.input] if isinstance(self.input, str) else self.input
        if any(not isinstance(text, str) for text in texts):
            raise UnsupportedOption(
                f"Token ids belong to another model's tokenizer; '{model}' needs text "
                "(in LangChain: check_embedding_ctx_length=False).",
                "input",
            )
        if not all(texts):
            raise InvalidRequest("'input' holds an empty string: there is nothing to embed.", "input")
        return [str(text) for text in texts]


def usage(counted: Usage) -> Json:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
    }


def sources(passages: Sequence[Passage]) -> list[Json]:
    """What the model was given, in the order of the citation marks: the first is [1]."""
    return [passage.model_dump(mode="json") for passage in passages]


def annotations(text: str, passages: Sequence[Passage], base_url: str) -> list[Json]:
    """The citation marks in an answer, as url_citation, the one kind that chat completions have (file_citation belongs
    to the Responses API). Indices: characters of the answer. Marks of no source are dropped.
    """
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": mark.start(),
                "end_index": mark.end(),
                "title": passages[int(mark[1]) - 1].title,
                "url": f"{base_url}v1/documents/{passages[int(mark[1]) - 1].document_id}",
            },
        }
        for mark in CITATION.finditer(text)
        if 1 <= int(mark[1]) <= len(passages)
    ]


def embeddings(vectors: np.ndarray, model: str, tokens: int, encoding: Literal["float", "base64"] | None) -> Json:
    """The embeddings answer. vectors: float32 (texts, dimension); base64 holds them little-endian."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist(),
        }
        for index, row in enumerate(rows)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def language_model(name: str, created: int, card: ModelCard, adapter: str | None) -> Json:
    """A model that chats. Beyond OpenAI's own: what it can, for clients that look. card: of the model behind the name;
    adapter: the version that answers, None for the bare base.
    """
    return _model(name, created, CHATS) | {
        "root": card.name,
        "adapter": adapter,
        "context_window": card.window,
        "parameters": card.parameters,
        "description": card.description,
        "loaded": card.loaded and (adapter is None or adapter in card.adapters),
    }


def embedding_model(name: str, created: int, dimension: int) -> Json:
    """A model that embeds."""
    return _model(name, created, EMBEDS) | {"root": name, "dimensions": dimension}


def fingerprint(card: ModelCard, adapter: str | None, version: str) -> str:
    """What `system_fingerprint` tells: the same text as long as the same weights and the same software answer."""
    told = f"{card.model_dump_json()}\0{adapter}\0{version}"
    return f"fp_{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def error(exc: MindFuError) -> Json:
    """OpenAI's error object, all four keys."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        exc.status, "invalid_request_error" if exc.status < 500 else "server_error"
    )
    return {"error": {"message": str(exc), "type": kind, "param": exc.param, "code": exc.code}}


def _model(name: str, created: int, capabilities: dict[str, bool]) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "mindfu", "capabilities": capabilities}
