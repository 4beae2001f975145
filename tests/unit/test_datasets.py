"""The stages `validate` and `split`: every drop is counted, and nothing that is tested on is ever trained on."""

import json
import random
from pathlib import Path

import pytest

from app.errors import InvalidRequest, NothingToLearn
from train import lines, split, stages, validate
from train.near import Near, similarity, sketch
from train.quality import Quality
from train.split import Split

WORDS = [
    "tea",
    "coffee",
    "milk",
    "sugar",
    "cup",
    "hot",
    "cold",
    "large",
    "small",
    "oat",
    "cake",
    "bread",
    "water",
    "ice",
]


def story(number: int) -> str:
    """Words that differ from number to number."""
    return " ".join(random.Random(number).choices(WORDS, k=40))


def line(question: str, answer: str = "Here you are.", **metadata: object) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **({"metadata": metadata} if metadata else {})})


def dataset(folder: Path, *texts: str, preferences: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("".join(text + "\n" for text in texts))
    (folder / "preferences.jsonl").write_text("".join(text + "\n" for text in preferences))
    return folder


def divided(folder: Path, home: Path, **changes: float) -> dict[str, set[str]]:
    """The questions of each part."""
    made = stages.run(split.STAGE, inputs={"data": folder}, parameters=Split.model_validate(changes), home=home)
    return {part: {one.messages[0].content for one in lines.read(made / f"{part}.jsonl")} for part in split.PARTS}


def test_every_drop_is_counted_with_its_reason(tmp_path: Path) -> None:
    """Two sources are merged; what comes out is clean."""
    one = dataset(tmp_path / "a", line(story(1)), line(story(1)), "{", line(story(2), "I cannot help with that."))
    other = dataset(tmp_path / "b", line("I am bob@example.org, " + story(3)))
    inputs = {"data": one, "data.2": other}
    folder = stages.run(validate.STAGE, inputs=inputs, parameters=Quality(), home=tmp_path / "home")
    told = stages.manifest(folder)
    assert told.counts["conversations"] == 2
    assert told.dropped == {"near-duplicate": 1, "malformed: The line is no JSON": 1, "refusal": 1}
    assert json.loads((folder / "report.json").read_text())["redacted"] == {"EMAIL": 1}
    assert "bob@" not in (folder / "data.jsonl").read_text()


def test_what_is_no_data_set_is_refused_at_once(tmp_path: Path) -> None:
    """With the stage that makes one."""
    with pytest.raises(InvalidRequest, match=r"run train\.convert on it"):
        stages.run(validate.STAGE, inputs={"data": tmp_path}, parameters=Quality(), home=tmp_path / "home")


def test_too_little_cannot_be_split(tmp_path: Path) -> None:
    """Both numbers are named."""
    folder = dataset(tmp_path / "a", line("one"))
    with pytest.raises(NothingToLearn, match="Found 1 conversations and preferences, needed 10"):
        divided(folder, tmp_path / "home")


def test_shares_are_about_what_was_asked_for(tmp_path: Path) -> None:
    """Of 400 conversations 320, 40 and 40, give or take four standard deviations (8 and 6)."""
    parts = divided(dataset(tmp_path / "a", *(line(story(n)) for n in range(400))), tmp_path / "home")
    assert abs(len(parts["train"]) - 320) <= 32
    assert abs(len(parts["validation"]) - 40) <= 24
    assert abs(len(parts["test"]) - 40) <= 24
    assert sum(map(len, parts.values())) == 400


def test_what_was_tested_on_is_never_trained_on(tmp_path: Path) -> None:
    """In a later split of more data, of other shares, and in another order: everything stays where it was."""
    home = tmp_path / "home"
    first = divided(dataset(tmp_path / "a", *(line(story(n)) for n in range(100))), home)
    more = [line(story(n)) for n in range(200)]
    random.Random(0).shuffle(more)
    later = divided(dataset(tmp_path / "b", *more), home, train=0.9, validation=0.05, test=0.05)
    for part in split.PARTS:
        assert first[part] <= later[part]


def test_near_duplicates_go_together_across_splits(tmp_path: Path) -> None:
    """A later conversation that resembles one that was tested on is tested on, too."""
    home = tmp_path / "home"
    first = divided(dataset(tmp_path / "a", *(line(story(n)) for n in range(60))), home)
    copies = [line(f"{story(n)} please {n}") for n in range(60)]
    later = divided(dataset(tmp_path / "b", *copies), home)
    for part in split.PARTS:
        assert {text.partition(" please")[0] for text in later[part]} == first[part]


def test_what_resembles_both_kinds_is_dropped(tmp_path: Path) -> None:
    """Half of it was trained on, half of it tested on."""
    home = tmp_path / "home"
    first = divided(dataset(tmp_path / "a", *(line(story(n)) for n in range(60))), home)
    bridge = f"{min(first['train'])} {min(first['test'])}"
    folder = dataset(tmp_path / "b", line(bridge), *(line(story(n)) for n in range(100, 120)))
    parts = divided(folder, home, similarity=0.4)
    assert bridge not in set().union(*parts.values())
    assert sum(map(len, parts.values())) == 20


def test_a_conversation_stays_where_it_was_however_it_goes_on(tmp_path: Path) -> None:
    """Its name counts, and its preferences go with it."""
    home = tmp_path / "home"
    first = divided(dataset(tmp_path / "a", *(line(story(n), id=str(n)) for n in range(40))), home)
    others = [line(story(1000 + n), id=str(n)) for n in range(40)]
    pairs = [
        json.dumps(
            {
                "prompt": [{"role": "user", "content": f"{n}"}],
                "chosen": {"role": "assistant", "content": "a"},
                "rejected": {"role": "assistant", "content": "b"},
                "metadata": {"id": str(n)},
            }
        )
        for n in range(40)
    ]
    later = divided(dataset(tmp_path / "b", *others, preferences=tuple(pairs)), home)
    where = {story(n): part for part, found in first.items() for n in range(40) if story(n) in found}
    assert all(story(1000 + n) in later[where[story(n)]] for n in range(40))
    folder = max((home / "datasets").glob("split-*"), key=lambda path: path.stat().st_mtime)
    for part in split.PARTS:
        names = {pair.id for pair in lines.read_preferences(folder / f"preferences-{part}.jsonl")}
        assert names == {str(n) for n in range(40) if where[story(n)] == part}


def test_similarity_is_estimated_well() -> None:
    """Equal texts are 1, 38 of 40 words the same about 0.85 and unlike ones next to 0."""
    text = story(1)
    assert similarity(sketch(text), sketch(text.upper())) == 1
    assert 0.6 < similarity(sketch(text), sketch(text[: text.rindex(" ")] + " something else")) < 1
    assert similarity(sketch(text), sketch(" ".join(reversed(text.split())))) < 0.2


def test_what_is_near_is_found_by_name() -> None:
    """Of many others, in the order in which they came."""
    near = Near(0.8)
    for number in range(50):
        near.add(str(number), sketch(story(number)))
    near.add("copy", sketch(story(7) + " ice"))
    assert near.like(sketch(story(7))) == ["7", "copy"]
    assert near.like(sketch("nothing of the kind")) == []
