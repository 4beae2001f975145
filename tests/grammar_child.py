"""Run by a test, in a process of its own: a grammar that llama.cpp cannot bear ends the process, not the test.

Reads a model's path and schemas as JSON, prints for each one what random logits make of it: texts, or a refusal. With a
chat template, the schemas are those of a function that must be called, and what is printed are its arguments.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from app.errors import InvalidRequest
from app.llama.answer import Answer, Piece
from app.llama.constraint import Constraint, constraint
from app.llama.grammar import from_schema
from app.llama.model import Model
from app.llama.sampling import Sampler
from app.llama.syntax import recognise
from app.messages import Generate, Message, Sampling, Tool
from tests.gguf_factory import byte_letters

TOKENS, TEXTS = 200, 2


def answers(model: Model, grammar: str, seed: int, ascii_bias: float = 0.0) -> list[str | None]:
    """What the grammar lets through; None where it was cut off. ascii_bias: towards text that comes to an end."""
    rng = np.random.default_rng(seed)
    vocabulary = byte_letters()
    found: list[str | None] = []
    for number in range(TEXTS):
        sampler = Sampler(Sampling(seed=number), model, TOKENS, Constraint(grammar))
        said = b""
        for _ in range(TOKENS):
            logits = rng.normal(size=model.vocab_size).astype(np.float32) * 3
            logits[list(model.endings)] += 6  # they end as soon as they may
            logits[[vocabulary.index(chr(code)) for code in range(33, 127)]] += ascii_bias
            logits[[vocabulary.index(closer) for closer in '"<]}/Ċ']] += 2 * ascii_bias
            token = sampler.sample(SimpleNamespace(logits=lambda _, row=logits: row), 0)
            if token is None or model.ends(token):
                found.append(_text(said))
                break
            said += model.piece(token)
        else:
            found.append(None)
        sampler.close()
    return found


def calls(model: Model, schema: dict[str, Any], template: str, seed: int) -> list[Any]:
    """The arguments of the one call that the grammar forced; None where it was cut off."""
    tool = Tool(name="f", parameters=schema, strict=True)
    request = Generate(
        request_id="r", model="m", tools=(tool,), tool_choice="required", parallel_tool_calls=False,
        messages=(Message(role="user", content="hi"),),
    )  # fmt: skip
    syntax = recognise(template)
    rule = constraint(request, syntax, thinking=False)
    assert rule
    assert rule.grammar
    drawn = answers(model, rule.grammar, seed, ascii_bias=4.0)
    return [text and _arguments(Answer((), syntax, {"f": schema}), text) for text in drawn]


def _arguments(answer: Answer, text: str) -> Any:
    pieces = [answer.push(text.encode()), *iter(answer.finish, Piece())]
    said = "".join(piece.text for piece in pieces)
    assert not said.strip(), f"text beside the call: {text!r}"
    assert (answer.calls, answer.broken) == (1, False), text
    return json.loads("".join(delta.arguments for piece in pieces for delta in piece.calls))


def _text(said: bytes) -> str | None:
    try:
        return said.decode()
    except UnicodeDecodeError:  # random bytes are seldom text
        return None


def main() -> None:
    given = json.load(sys.stdin)
    model = Model(Path(given["model"]))
    template = given.get("template")
    for seed, schema in enumerate(given["schemas"]):
        try:
            if template:
                drawn = calls(model, schema, template, seed)
            else:
                drawn = answers(model, from_schema(schema, strict=True, param="schema"), seed)
            sys.stdout.write(json.dumps(drawn) + "\n")
        except InvalidRequest as error:
            sys.stdout.write(json.dumps({"refused": str(error), "param": error.param}) + "\n")


if __name__ == "__main__":
    main()
