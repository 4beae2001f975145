"""Run by a test, in a process of its own: a grammar that llama.cpp cannot bear ends the process, not the test.

Reads a model's path and schemas as JSON, prints for each one what random logits make of it: texts, or a refusal.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from app.errors import InvalidRequest
from app.llama.constraint import Constraint
from app.llama.grammar import from_schema
from app.llama.model import Model
from app.llama.sampling import Sampler
from app.messages import Sampling

TOKENS, TEXTS = 200, 2


def answers(model: Model, schema: object, seed: int) -> list[str | None]:
    """What the grammar lets through; None where it was cut off."""
    grammar = from_schema(schema, strict=True, param="schema")
    rng = np.random.default_rng(seed)
    found: list[str | None] = []
    for number in range(TEXTS):
        sampler = Sampler(Sampling(seed=number), model, TOKENS, Constraint(grammar))
        said = b""
        for _ in range(TOKENS):
            logits = rng.normal(size=model.vocab_size).astype(np.float32) * 3
            logits[list(model.endings)] += 6  # they end as soon as they may
            token = sampler.sample(SimpleNamespace(logits=lambda _, row=logits: row), 0)
            if model.ends(token):
                found.append(_text(said))
                break
            said += model.piece(token)
        else:
            found.append(None)
        sampler.close()
    return found


def _text(said: bytes) -> str | None:
    try:
        return said.decode()
    except UnicodeDecodeError:  # random bytes are seldom text
        return None


def main() -> None:
    given = json.load(sys.stdin)
    model = Model(Path(given["model"]))
    for seed, schema in enumerate(given["schemas"]):
        try:
            sys.stdout.write(json.dumps(answers(model, schema, seed)) + "\n")
        except InvalidRequest as error:
            sys.stdout.write(json.dumps({"refused": str(error), "param": error.param}) + "\n")


if __name__ == "__main__":
    main()
