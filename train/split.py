"""Stage `split`: into what is trained on, what stops training, and what a model is judged by.

    python -m train.split --input data=.mindfu/datasets/validate-0f3a…

A conversation goes where the hash of its name says, and near-duplicates go together. Where one went is kept in
<home>/datasets/assignments.jsonl and holds for all later splits: what was ever tested on is never trained on, nor the
other way round, whatever else the data hold by then. A conversation that resembles some of both kinds is dropped.
"""

import base64
import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from app.errors import InvalidRequest, NothingToLearn
from app.messages import Strict
from train import lines, stages
from train.near import Near, Sketch, sketch
from train.quality import spoken
from train.stages import Outcome, Stage, Work

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
ASSIGNMENTS = "assignments.jsonl"


class Split(Strict):
    """The parameters of the stage `split`. Shares of the three parts; for a run that nobody gates, test may be 0."""

    train: float = Field(0.8, gt=0, le=1)
    validation: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    similarity: float = Field(0.7, gt=0, le=1)  # Jaccard's of word 3-grams, from which two stay together
    min_conversations: int = Field(10, ge=2)  # fewer cannot be split

    @model_validator(mode="after")
    def shares_are_all(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError(f"the shares add up to {self.train + self.validation + self.test:g}, not to 1")
        return self

    def part(self, name: str) -> Part:
        """Where a name goes: its hash as a number between 0 and 1."""
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
        return "train" if place < self.train else "validation" if place < self.train + self.validation else "test"


def check(inputs: Mapping[str, Path], parameters: Split) -> None:
    """Raises where there is too little to split."""
    found = sum(1 for folder in inputs.values() for _ in lines.texts(_data(folder)))
    found += sum(1 for folder in inputs.values() for _ in lines.read_preferences(folder / "preferences.jsonl"))
    if found < parameters.min_conversations:
        remedy = "Record, correct or convert more, or lower split.min_conversations."
        raise NothingToLearn("conversations and preferences", found, parameters.min_conversations, remedy)


def make(work: Work[Split]) -> Outcome:
    """Group, assign, write."""
    told = [line for folder in work.all("data") for line in lines.read(_data(folder))]
    pairs = [pair for folder in work.all("data") for pair in lines.read_preferences(folder / "preferences.jsonl")]
    texts = [(line.id, spoken(line)) for line in told]
    texts += [(pair.id, "\n".join(message.content for message in pair.prompt)) for pair in pairs]
    with _kept(work.home) as known:
        parts = assign([(name, sketch(text)) for name, text in texts], known, work.parameters)
    counts: Counter[str] = Counter()
    for part in PARTS:
        mine = (lines.dump(line) for line in told if parts.get(line.id) == part)
        counts[part] = lines.save(work.folder / f"{part}.jsonl", mine)
        theirs = (lines.dump_preference(pair) for pair in pairs if parts.get(pair.id) == part)
        counts[f"preferences-{part}"] = lines.save(work.folder / f"preferences-{part}.jsonl", theirs)
    lost = sum(line.id not in parts for line in told) + sum(pair.id not in parts for pair in pairs)
    dropped = {"resembles both what is trained on and what is tested on": lost} if lost else {}
    return Outcome(counts, dropped, {"test_content": stages.content(work.folder / "test.jsonl")})


class Assignments:
    """Where conversations went, by name, and sketches of what they said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, Part] = {}
        self.sketches: list[tuple[str, Sketch]] = []
        self._new: list[str] = []
        for text in lines.texts(path) if path.exists() else ():
            told = json.loads(text)
            self._take(told["name"], told["part"], [Sketch(base64.b64decode(one)) for one in told["sketches"]])

    def add(self, name: str, part: Part, sketches: Sequence[Sketch]) -> None:
        """Remember what a conversation says now. Where it went once it stays."""
        assert self.parts.get(name, part) == part
        self._take(name, part, sketches)
        encoded = [base64.b64encode(one).decode() for one in sketches]
        self._new.append(json.dumps({"name": name, "part": part, "sketches": encoded}))

    def save(self) -> None:
        """Add what is new to the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(text + "\n" for text in self._new)

    def _take(self, name: str, part: Part, sketches: Sequence[Sketch]) -> None:
        self.parts[name] = part
        self.sketches += [(name, one) for one in sketches]


def assign(told: Sequence[tuple[str, Sketch]], known: Assignments, split: Split) -> dict[str, Part]:
    """The part of each name, and into `known` with it. Missing are those that resemble both trained and tested ones."""
    near, roots = Near(split.similarity), Roots()
    for name, made in known.sketches:
        near.add(name, made)
    for name, made in told:
        for other in (name, *near.like(made)):
            roots.join(name, other)
        near.add(name, made)
    parts: dict[str, Part] = {}
    for cluster in roots.clusters():
        parts |= _parts(cluster, known.parts, split)
    seen, fresh = set(known.sketches), dict[str, list[Sketch]]()
    for name, made in told:
        if name in parts and (name, made) not in seen:
            fresh.setdefault(name, []).append(made)
    for name, sketches in fresh.items():
        known.add(name, parts[name], sketches)
    return parts


def _parts(cluster: set[str], known: Mapping[str, Part], split: Split) -> dict[str, Part]:
    """Of names that belong together. Those that went somewhere stay; the others follow, where that is clear."""
    before = {known[name] for name in cluster if name in known}
    kept = {name: known[name] for name in cluster if name in known}
    if "test" in before and len(before) > 1:
        return kept
    part = "train" if len(before) > 1 else before.pop() if before else split.part(min(cluster))
    return dict.fromkeys(cluster, part) | kept


class Roots:
    """Which names belong together, however many steps apart (union-find)."""

    def __init__(self) -> None:
        self._up: dict[str, str] = {}

    def clusters(self) -> list[set[str]]:
        """The names that belong together."""
        found: dict[str, set[str]] = {}
        for name in self._up:
            found.setdefault(self.find(name), set()).add(name)
        return list(found.values())

    def find(self, name: str) -> str:
        """The name that stands for all that it belongs to: the least of them."""
        up = self._up.setdefault(name, name)
        if up != name:
            up = self._up[name] = self.find(up)
        return up

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._up[second] = first


@contextmanager
def _kept(home: Path) -> Iterator[Assignments]:
    """The assignments of a home, saved behind the block; one process at a time."""
    path = home / "datasets" / ASSIGNMENTS
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = Assignments(path)
        yield known
        known.save()


def _data(folder: Path) -> Path:
    path = folder / "data.jsonl"
    if not path.exists():
        raise InvalidRequest(f"{folder} has no data.jsonl: it is no data set.", "data")
    return path


STAGE = Stage(
    name="split",
    does="Split into what is trained on, what stops training, and what a model is judged by.",
    place="datasets",
    inputs=("data+",),
    parameters=Split,
    make=make,
    check=check,
)

if __name__ == "__main__":
    stages.main(STAGE)
