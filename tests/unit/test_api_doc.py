"""docs/api.md tells of every field that a client of today can send."""

import re
from pathlib import Path
from typing import get_type_hints

import pytest
from anthropic.types import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types import EmbeddingCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("section", "sent"),
    [
        ("Chat completions", ChatParams),
        ("Completions", CompletionParams),
        ("Embeddings", EmbeddingCreateParams),
        ("Responses", ResponseCreateParamsBase),
        ("Messages (Anthropic)", MessageCreateParamsBase),
        ("Messages (Anthropic)", MessageCountTokensParams),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_that_an_sdk_can_send_is_told(section: str, sent: type):
    """Supported, kept or refused: by its name, in the section of its endpoint."""
    text = API.split(f"\n## {section}\n")[1].split("\n## ")[0]
    told = {name for span in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", span)}
    assert set(get_type_hints(sent)) - told == set()
