"""Requests of the contract as vLLM takes them."""

import json

import pytest

from app.errors import InvalidRequest
from app.llama.constraint import constraint
from app.llama.syntax import Syntax
from app.messages import Generate, JsonFormat, Message, Sampling, Tool
from app.vllm.translate import ebnf, sampling_arguments, structured_outputs

HERMES = Syntax("hermes", own=True, opening="<tool_call>", closing="</tool_call>", thoughts=None)
LLAMA = Syntax("llama", own=True, opening="", closing="", thoughts=None)
STRICT = Tool(name="f", strict=True, parameters={"type": "object", "properties": {"a": {"enum": [1]}}})
ASKED = Generate(request_id="r", model="m", messages=(Message(role="user", content="hi"),))


def arguments(**sampling: object) -> dict[str, object]:
    ends = frozenset({9, 4})
    return sampling_arguments(Sampling(**sampling), answer_tokens=7, logprobs=2, endings=ends, vocab_size=10)


def test_the_defaults_change_nothing():
    """Plain sampling at temperature 1; text is none of vLLM's business."""
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    free = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": None, "logit_bias": None, "min_tokens": 0}
    ours = {"max_tokens": 7, "stop_token_ids": [4, 9], "logprobs": 2, "detokenize": False}
    assert arguments() == plain | free | ours


def test_every_wish_is_handed_on():
    """Under vLLM's name for it."""
    wishes = {"temperature": 0.3, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "frequency_penalty": 1.0}
    wishes |= {"presence_penalty": -1.0, "seed": 5, "logit_bias": {3: 1.5}}
    told = arguments(repeat_penalty=1.2, **wishes)
    assert {name: told[name] for name in wishes} == wishes
    assert told["repetition_penalty"] == 1.2


def test_ignoring_the_end_forbids_it():
    """Until the last token that may come."""
    assert arguments(ignore_eos=True)["min_tokens"] == 7


def test_a_bias_of_no_token_is_refused():
    """With the tokens that there are."""
    with pytest.raises(InvalidRequest, match="names token 10; the model's tokens are 0 to 9") as refused:
        arguments(logit_bias={10: 1})
    assert refused.value.param == "logit_bias"


def test_a_form_is_the_grammar_that_llama_cpp_is_given():
    """XGrammar reads the same notation but for escapes."""
    rule = constraint(ASKED.model_copy(update={"response_format": JsonFormat()}), HERMES, thinking=False)
    assert rule is not None
    assert rule.grammar is not None
    assert structured_outputs(rule) == {"grammar": ebnf(rule.grammar)}
    assert structured_outputs(None) is None


def test_escapes_have_four_digits_for_xgrammar():
    r"""It reads \x with as many digits as follow; a backslash that is meant stays one."""
    assert ebnf(r'root ::= "\x22a\x22" [^"\\\x7F] "\\x22"') == r'root ::= "\u0022a\u0022" [^"\\\u007F] "\\x22"'


@pytest.mark.parametrize(
    ("syntax", "begin"), [(HERMES, "<tool_call>"), (LLAMA, '{"name": "f", "parameters": ')], ids=["marked", "bare"]
)
def test_free_calls_of_strict_functions_are_held_from_their_beginning(syntax: Syntax, begin: str):
    """Text before is as it comes: the tag is triggered by the mark, or by the head of the call."""
    rule = constraint(ASKED.model_copy(update={"tools": (STRICT,)}), syntax, thinking=False)
    told = structured_outputs(rule)
    assert told is not None
    form = json.loads(told["structural_tag"])["format"]
    assert (form["type"], form["triggers"]) == ("triggered_tags", [begin])
    (tag,) = form["tags"]
    assert (tag["begin"], tag["end"]) == (begin, "")
    assert tag["content"]["grammar"].startswith("root ::= ")
