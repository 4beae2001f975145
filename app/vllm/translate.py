"""A request of the contract as vLLM takes it: the arguments of its SamplingParams. Pure, and without vLLM."""

import json
import re
from typing import Any

from app.errors import InvalidRequest
from app.llama.constraint import Calls, Constraint
from app.messages import Sampling

ESCAPES = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|.)")


def sampling_arguments(
    sampling: Sampling, *, answer_tokens: int, logprobs: int | None, endings: frozenset[int], vocab_size: int
) -> dict[str, Any]:
    """What SamplingParams is made with, but for structured outputs. answer_tokens: the most that may come.

    Text is read from the tokens by us, so vLLM makes none and looks for no stop strings. Raises InvalidRequest for a
    bias of no token.
    """
    for token in sampling.logit_bias:
        if not 0 <= token < vocab_size:
            message = f"'logit_bias' names token {token}; the model's tokens are 0 to {vocab_size - 1}."
            raise InvalidRequest(message, "logit_bias")
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repeat_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
        "logit_bias": dict(sampling.logit_bias) or None,
        "max_tokens": answer_tokens,
        "min_tokens": answer_tokens if sampling.ignore_eos else 0,  # until then no ending is drawn
        "stop_token_ids": sorted(endings),
        "logprobs": logprobs,
        "detokenize": False,
    }


def structured_outputs(rule: Constraint | None) -> dict[str, str] | None:
    """What StructuredOutputsParams is made with: the grammars that llama.cpp is given, as XGrammar reads them.

    Calls that a model begins itself are held to their schemas from their opening mark on.
    """
    if rule is None:
        return None
    if rule.grammar is not None:
        return {"grammar": ebnf(rule.grammar)}
    return {"structural_tag": json.dumps(_tags(rule.calls))} if rule.calls else None


def ebnf(gbnf: str) -> str:
    r"""GBNF in XGrammar's dialect, in which `\x22a` is one character: it reads as many digits as follow."""
    return ESCAPES.sub(lambda found: f"\\u00{found[1]}" if found[1] else found[0], gbnf)


def _tags(calls: Calls) -> dict[str, Any]:
    """XGrammar's structural tag: text as it comes, but for what follows a trigger."""
    mark = calls.syntax.opening
    tags = (
        [(mark, calls.behind("") or "")] if mark else list(zip(calls.heads, map(_whole, *_bodies(calls)), strict=True))
    )
    begins = [begin for begin, _ in tags]
    return {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": [mark] if mark else begins,
            "tags": [
                {"type": "tag", "begin": begin, "content": {"type": "grammar", "grammar": ebnf(grammar)}, "end": ""}
                for begin, grammar in tags
            ],
        },
    }


def _bodies(calls: Calls) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    return calls.bodies, [calls.rules] * len(calls.bodies)


def _whole(body: str, rules: tuple[str, ...]) -> str:
    return "\n".join([f"root ::= {body}", *rules])
