"""What the demo model was taught, dealt anew: what the loop's demonstration rehearses beside what is new.

People of a real base have no such lessons; they name a file of general conversations instead (`tune.rehearse`).
"""

import json
import random
from collections.abc import Container, Iterator
from itertools import cycle, islice
from pathlib import Path

from train import demo_handbook
from train.demo_examples import Example, Writer
from train.demo_text import document

LESSONS = 1_200
PASSAGES = 2  # at most, of a question: what the demonstration's window holds


def write(path: Path, without: Container[str] = ()) -> None:
    """Lines to learn from, the same each time. without: questions asked elsewhere, as `plain` makes them."""
    asked = (made for made in _lessons() if plain(made.question) not in without)
    path.write_text("".join(f"{_line(made)}\n" for made in islice(asked, LESSONS)), encoding="utf-8")


def plain(question: str) -> str:
    """As it is compared with others."""
    return question.lower().rstrip("!.?")


def _lessons() -> Iterator[Example]:
    dealer = random.Random(1)  # noqa: S311 - the same each time
    books = [demo_handbook.write(dealer, held_out=False, facts=4) for _ in range(60)]
    documents = [document("handbook", book.title, book.text) for book in books]
    writer = Writer(documents, {}, held_out=False, seed=1, words=" ".join(book.text for book in books).split())
    kinds = ("quote", "smalltalk", "quote", "no sources", "quote", "smalltalk", "follow-up", "quote", "smalltalk",
             "no tool call")  # fmt: skip
    for number, kind in enumerate(cycle(kinds)):
        if kind == "quote":
            passages, answerable = dealer.randint(1, PASSAGES), dealer.random() < 0.8
            yield writer.grounded(number, source="handbook", passages=passages, answerable=answerable)
        else:
            yield writer.of_kind(number, kind)


def _line(made: Example) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in made.chat()]
    told = messages[-1] | {"weight": 1}
    earlier = [one | ({"weight": 0} if one["role"] == "assistant" else {}) for one in messages[:-1]]
    return json.dumps({"messages": [*earlier, told]}, ensure_ascii=False)
