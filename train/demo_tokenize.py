"""Stage 2 of the demo model: learn the tokenizer from the collected text and from the handbook sentences.

    python -m train.demo_tokenize --out .mindfu/demo

Writes tokenizer.json. Held-out documents are not read.
"""

# ruff: noqa: S311 - chance here draws training text, it guards nothing
import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from train import demo_handbook, demo_text, tokenizer

DOCUMENT_CHARACTERS = 8_000_000
HANDBOOK_DOCUMENTS = 6_000


def texts(documents: list[demo_text.Document]) -> Iterator[str]:
    """What the vocabulary is fitted to: a sample of documents, and as much of the handbook."""
    rng = random.Random(0)
    budget = DOCUMENT_CHARACTERS
    for found in rng.sample(documents, len(documents)):
        if budget < 0:
            break
        budget -= len(found.text)
        yield found.text
    for number in range(HANDBOOK_DOCUMENTS):
        handbook = demo_handbook.write(random.Random(f"tokenize:{number}"), held_out=False)
        yield handbook.text
        yield "\n".join(fact.questions[0] for fact in handbook.facts)


def main(out: Path) -> None:
    """Train, save, and say how many characters a token covers."""
    trained, held_out = demo_text.load(out / "documents.jsonl")
    learnt = tokenizer.train(texts(trained))
    learnt.save(str(out / "tokenizer.json"))
    sample = "".join(found.text for found in held_out[:50])
    print(
        f"{learnt.get_vocab_size()} tokens, {len(sample) / len(tokenizer.encode(learnt, sample)):.2f} characters each"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".mindfu/demo"))
    main(parser.parse_args().out)
