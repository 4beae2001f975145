"""Stage 4 of the demo model: score the GGUF as it is served, by llama.cpp at temperature 0.

    python -m train.demo_evaluate --out .mindfu/demo --gguf app/demo/mindfu-demo.gguf

Asks held-out wordings about held-out documents, also behind held-out system prompts. Prints a table and writes
scores.json. "exact" is word for word: the right sentence, its mark, and nothing after it; of a call, its name and every
argument.
"""

import argparse
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from app import prompt
from app.chunking import cut
from app.embedding import EmbeddingModel
from app.embedding_card import Purpose
from app.embedding_source import BUNDLED
from train import chat, gguf_export, tokenizer
from train.demo_examples import Example, Piece, Writer, fronted
from train.demo_export import SHIPPED, trained
from train.demo_train import writers
from train.model import Llama

SEED = 5  # of the questions; another one than training's
BEHIND = (200, 1000)  # tokens of system prompt
LETTERS = 6  # characters of which a token is made at most, on average
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
MOST_TOKENS = 160  # an answer that is longer did not stop


class Answer(NamedTuple):
    """What the model said. stopped: by itself."""

    tokens: list[int]
    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Served:
    """The GGUF in llama.cpp."""

    engine: llama_cpp.Llama
    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: Path) -> "Served":
        loaded = gguf_export.read(path)
        engine = llama_cpp.Llama(str(path), n_ctx=loaded.shape.window, n_threads=1, n_threads_batch=1, verbose=False)
        return cls(engine, loaded.tokenizer)

    def prompt(self, turns: Sequence[chat.Turn]) -> list[int]:
        """The tokens that the model answers to."""
        return [*chat.render(self.tokenizer, turns).tokens, *chat.opening(self.tokenizer)]

    def answer(self, prompt: list[int]) -> Answer:
        """Greedy text."""
        end = tokenizer.number(self.tokenizer, tokenizer.TURN_END)
        said: list[int] = []
        for token in self.engine.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if token == end or len(said) == MOST_TOKENS:
                return Answer(said, tokenizer.decode(self.tokenizer, said), token == end)
            said.append(token)
        raise AssertionError

    def behind(self, example: Example, text: str, tokens: int) -> Example:
        """The example with the first tokens of a text as its system prompt."""
        return fronted(example, tokenizer.decode(self.tokenizer, tokenizer.encode(self.tokenizer, text).ids[:tokens]))


def calls(text: str) -> list[dict[str, object]]:
    """The well-formed calls in an answer, as JSON objects with a name and arguments."""
    found = []
    for body in CALL.findall(text):
        try:
            call = json.loads(body)
        except ValueError:
            continue
        if isinstance(call, dict) and {"name", "arguments"} == set(call) and isinstance(call["arguments"], dict):
            found.append(call)
    return found


@torch.no_grad()
def agrees(network: Llama, prompt: list[int], said: list[int], end: int) -> bool:
    """Whether PyTorch's greedy text would be the same: its best token after every prefix is the one that was said."""
    tokens = torch.tensor([[*prompt, *said, end]])
    best = network.logits(network.trace(tokens[:, :-1]).hidden[:, len(prompt) - 1 :]).argmax(-1)
    return bool((best == tokens[:, len(prompt) :]).all())


def judged_call(example: Example, said: Answer) -> dict[str, bool]:
    """What is right about the answer where tools are on offer. Empty where none are."""
    if "tool call" not in example.kind:
        return {}
    made, right = calls(said.text), calls(example.answer)
    if not right:
        return {"called all the same": "<tool_call>" in said.text}
    return {
        "well-formed": said.stopped and len(made) == 1,
        "right function": [call["name"] for call in made] == [right[0]["name"]],
        "right arguments too": made == right,
    }


def sets(writer: Writer) -> dict[str, Callable[[int], Example]]:
    """By name: what makes a set's example of a number."""
    made: dict[str, Callable[[int], Example]] = {}
    for source in ("docs", "handbook"):
        for passages in (1, 2, 4):
            made[f"{source}, {passages} passages"] = partial(
                writer.grounded, source=source, passages=passages, answerable=True
            )
        made[f"{source}, no answer in 4 passages"] = partial(
            writer.grounded, source=source, passages=4, answerable=False
        )
    for kind in ("follow-up", "smalltalk", "no sources", "tool call", "no tool call"):
        made[kind] = partial(writer.of_kind, kind=kind)
    return made


def questions(writer: Writer, served: Served, count: int) -> Iterator[tuple[str, Example]]:
    """(name of the set, example), so many of each set, and half as many of some behind system prompts."""
    made = sets(writer)
    for name, make in made.items():
        for number in range(count):
            yield name, make(number)
    for name in ("docs, 4 passages", "handbook, 4 passages", "tool call", "no tool call"):
        for tokens in BEHIND:
            for number in range(count // 2):
                text = writer.front(number, LETTERS * tokens)
                yield f"{name}, behind {tokens:,} tokens", served.behind(made[name](number), text, tokens)


def retrieved() -> Iterator[tuple[Example, str]]:
    """(example, what the quote must hold): our own chunks and embeddings of real documents, the best four passages."""
    embedding = EmbeddingModel.load(BUNDLED, threads=1)

    def vectors(texts: Sequence[str], purpose: Purpose) -> npt.NDArray[np.float32]:
        return np.concatenate(
            [embedding.forward(embedding.windows(embedding.tokens(text, purpose))[:1]) for text in texts]
        )

    documents = tomllib.loads(Path(__file__).with_name("demo_retrieval.toml").read_text(encoding="utf-8"))["documents"]
    pieces = []
    for document in documents:
        text = metadata(document["package"]).get_payload()  # type: ignore[attr-defined]  # an email message really
        title = f"{document['package']}.md"
        pieces += [Piece(title, prompt.defused(chunk.text), ()) for chunk in cut(text, kind="markdown")]
    places = vectors([piece.text for piece in pieces], "document")
    for document in documents:
        for question in document["questions"]:
            best = np.argsort(-(places @ vectors([question["ask"]], "query")[0]))[:4]
            found = tuple(pieces[index] for index in best)
            yield Example((), question["ask"], found, None, "", "retrieved"), question["holds"]


def main(out: Path, path: Path, count: int) -> None:
    """Ask, compare, print."""
    torch.set_num_threads(1)
    served, network = Served.load(path), trained(path)
    end = tokenizer.number(served.tokenizer, tokenizer.TURN_END)
    _, held_out = writers(out, seed=SEED)
    tally: dict[str, list[tuple[bool, bool, bool]]] = {}
    wrong = []
    called: Counter[str] = Counter()
    for name, example in questions(held_out, served, count):
        turns = example.chat()
        prompt = served.prompt(turns[:-1])
        said = served.answer(prompt)
        exact = said.stopped and said.text == example.answer
        same = agrees(network, prompt, said.tokens, end) if said.stopped else False
        tally.setdefault(name, []).append((exact, said.stopped, same))
        for judged, holds in judged_call(example, said).items():
            called[f"{name}: {judged}"] += holds
        if not exact:
            wrong.append({"set": name, "question": example.question, "expected": example.answer, "said": said.text})
    found = [(example, holds, served.answer(served.prompt(example.chat()[:-1]))) for example, holds in retrieved()]
    in_reach = [(e, holds, said) for e, holds, said in found if any(holds in piece.text for piece in e.pieces)]
    quoted = [said for _, holds, said in in_reach if holds in said.text]
    wrong += [
        {"set": "retrieved", "question": e.question, "expected": h, "said": a.text}
        for e, h, a in found
        if h not in a.text
    ]
    table = {
        name: {
            "questions": len(rows),
            "exact": round(sum(row[0] for row in rows) / len(rows), 3),
            "stopped": round(sum(row[1] for row in rows) / len(rows), 3),
            "as PyTorch": round(sum(row[2] for row in rows) / max(1, sum(row[1] for row in rows)), 3),
        }
        for name, rows in tally.items()
    }
    print("| questions | asked | exact | stopped | as PyTorch |\n|---|---|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(str(value) for value in row.values()) + " |")
    for name, number in called.items():
        print(f"{name}: {number}")
    print(
        f"real documents: of {len(found)} questions {len(in_reach)} found their passage, {len(quoted)} quoted from it"
    )
    (out / "scores.json").write_text(
        json.dumps({"scores": table, "calls": called, "wrong": wrong}, indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".mindfu/demo"))
    parser.add_argument("--gguf", type=Path, default=SHIPPED)
    parser.add_argument("--count", type=int, default=100, help="questions to a set")
    options = parser.parse_args()
    main(options.out, options.gguf, options.count)
