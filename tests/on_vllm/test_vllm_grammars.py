"""Our grammars as XGrammar reads them, which holds vLLM's answers to them: drawn from at random, byte by byte."""

import json
import random
from typing import Any

import pytest

from app.llama.grammar import from_schema, json_object
from app.vllm.translate import ebnf
from tests.integration.test_llama_grammar import SCHEMAS, check

pytestmark = pytest.mark.vllm
END = 256  # the token behind the 256 bytes
LONGEST = 400
DRAWS = 6


@pytest.fixture(scope="module")
def compiler() -> Any:
    xgrammar = pytest.importorskip("xgrammar")
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    told = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, stop_token_ids=[END])
    return xgrammar.GrammarCompiler(told, max_threads=1)


def drawn(compiler: Any, grammar: str) -> str | None:
    """One text that the grammar allows; None where it came to no end."""
    import xgrammar

    matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(grammar))
    mask, text = xgrammar.allocate_token_bitmask(1, END + 1), bytearray()
    while len(text) < LONGEST:
        matcher.fill_next_token_bitmask(mask)
        words = mask[0].tolist()
        allowed = [token for token in range(END + 1) if words[token // 32] >> (token % 32) & 1]
        token = END if END in allowed else random.choice(allowed)
        if token == END:
            return text.decode(errors="replace")  # as the engine does: XGrammar lets bytes of surrogates through
        assert matcher.accept_token(token)
        text.append(token)
    return None


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_what_comes_out_satisfies_the_schema(compiler: Any, schema: Any):
    """Every schema that llama.cpp's grammars are tested with."""
    random.seed(json.dumps(schema))
    grammar = ebnf(from_schema(schema, strict=True, param="schema"))
    assert check(schema, [drawn(compiler, grammar) for _ in range(DRAWS)]), "none came to an end"


def test_any_object_is_one(compiler: Any):
    """The answer to `{"type": "json_object"}`."""
    random.seed(1)
    assert check({"type": "object"}, [drawn(compiler, ebnf(json_object("response_format"))) for _ in range(DRAWS)])
