"""Stages: the same work once, any other work anew, and what was done is told."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import Field

from app.errors import InvalidRequest, MindFuError, Misconfigured
from app.messages import Strict
from train import sources, stages
from train.stages import Outcome, Stage, Work


class Shout(Strict):
    times: int = Field(1, ge=1)


class Shouting:
    """A stage that counts how often it works. broken: it stops in the middle."""

    def __init__(self) -> None:
        self.worked, self.broken = 0, False
        self.stage = Stage("stages", "Shout.", "datasets", ("data+", "more?"), Shout, self.make, given=self.given)
        self.state = "a"

    def make(self, work: Work[Shout]) -> Outcome:
        self.worked += 1
        left = work.folder / "half.txt"
        text = left.read_text() if left.exists() else ""
        left.write_text(text + "half ")
        if self.broken:
            raise InterruptedError
        said = "".join(path.read_text() for path in work.all("data")) * work.parameters.times
        (work.folder / "said.txt").write_text(said.upper())
        work.progress(1, 1)
        return Outcome({"letters": len(said)}, {"silence": 0})

    def given(self, _: Shout, __: Path) -> Mapping[str, str]:
        return {"weather": self.state}


@pytest.fixture
def shouting() -> Shouting:
    return Shouting()


@pytest.fixture
def word(tmp_path: Path) -> Path:
    path = tmp_path / "word.txt"
    path.write_text("hey")
    return path


def run(shouting: Shouting, word: Path, times: int = 1, **more: Path) -> Path:
    inputs = {"data": word} | more
    return stages.run(shouting.stage, inputs=inputs, parameters=Shout(times=times), home=word.parent / "home")


def test_the_same_work_is_done_once(shouting: Shouting, word: Path) -> None:
    """A second run of equal inputs and parameters returns the first one's folder."""
    assert run(shouting, word) == run(shouting, word)
    assert shouting.worked == 1


def test_other_inputs_parameters_and_states_are_other_work(shouting: Shouting, word: Path) -> None:
    """What comes out depends on them, and so does the folder."""
    folders = {run(shouting, word), run(shouting, word, times=2)}
    shouting.state = "b"
    folders.add(run(shouting, word))
    word.write_text("ho")
    folders.add(run(shouting, word))
    assert len(folders) == 4
    assert sorted((folder / "said.txt").read_text() for folder in folders) == ["HEY", "HEY", "HEYHEY", "HO"]


def test_the_place_of_an_input_does_not_matter(shouting: Shouting, word: Path) -> None:
    """Content counts: a copy elsewhere is the same."""
    copy = word.with_name("copy.txt")
    copy.write_text(word.read_text())
    assert run(shouting, word) == run(shouting, copy)


def test_an_interrupted_stage_goes_on_in_its_folder(shouting: Shouting, word: Path) -> None:
    """What it left is there, and only the end makes the folder complete."""
    shouting.broken = True
    with pytest.raises(InterruptedError):
        run(shouting, word)
    shouting.broken = False
    folder = run(shouting, word)
    assert (folder / "half.txt").read_text() == "half half "


def test_the_manifest_tells_what_was_done(shouting: Shouting, word: Path) -> None:
    """Inputs and outputs by hash, numbers, and the state of the code."""
    told = stages.manifest(run(shouting, word))
    assert told.counts == {"letters": 3}
    assert told.dropped == {"silence": 0}
    assert set(told.outputs) == {"half.txt", "said.txt"}
    assert told.inputs["data"].content == stages.content(word)
    assert told.inputs["weather"].content == "a"
    assert told.code == sources.fingerprint("train.stages")


def test_a_folder_of_a_stage_is_known_by_its_outputs(shouting: Shouting, word: Path) -> None:
    """Two runs with the same outputs are the same input to what follows."""
    one = run(shouting, word)
    shouting.state = "b"
    two = run(shouting, word)
    assert one != two
    assert stages.content(one) == stages.content(two)


def test_several_inputs_of_a_name_come_in_their_order(shouting: Shouting, word: Path) -> None:
    """`--input data=A --input data=B` merges."""
    other = word.with_name("other.txt")
    other.write_text("you")
    assert (run(shouting, word, **{"data.2": other}) / "said.txt").read_text() == "HEYYOU"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "stages needs the input 'data': --input data=PATH."),
        ({"data": "word.txt", "noise": "word.txt"}, "stages reads no input 'noise', but data, more."),
        ({"data": "word.txt", "more.2": "word.txt"}, "stages reads no input 'more.2', but data, more."),
        ({"data": "gone.txt"}, "Run the stage that writes it first."),
    ],
)
def test_wrong_inputs_are_named(shouting: Shouting, word: Path, inputs: dict[str, str], message: str) -> None:
    """Before any work."""
    paths = {name: word.parent / path for name, path in inputs.items()}
    with pytest.raises(MindFuError, match=message):
        stages.run(shouting.stage, inputs=paths, parameters=Shout(), home=word.parent)
    assert not shouting.worked


def test_a_copy_never_replaces_what_no_stage_wrote(shouting: Shouting, word: Path) -> None:
    """`--out` on somebody's own folder is refused; on an earlier copy it is not."""
    out = word.with_name("out")

    def copied() -> str:
        stages.run(shouting.stage, inputs={"data": word}, parameters=Shout(), home=word.parent / "home", out=out)
        return (out / "said.txt").read_text()

    assert copied() == copied() == "HEY"
    (out / stages.MANIFEST).unlink()
    with pytest.raises(Misconfigured, match="holds something that no stage wrote"):
        copied()


def test_parameters_come_from_the_file_and_then_from_the_command_line(shouting: Shouting, tmp_path: Path) -> None:
    """And a wrong one is named."""
    file = tmp_path / "params.yaml"
    file.write_text("stages: {times: 3}\nother: {}\n")
    assert stages.parameters(shouting.stage, file, {}).times == 3
    assert stages.parameters(shouting.stage, file, {"times": "4"}).times == 4
    with pytest.raises(Misconfigured, match=r"stages\.times: Input should be greater than or equal to 1"):
        stages.parameters(shouting.stage, file, {"times": "0"})
    with pytest.raises(Misconfigured, match=r"stages\.tims: Extra inputs"):
        stages.parameters(shouting.stage, file, {"tims": "1"})
    for wrong in ({"times": "[1"}, {"times.a": "1"}):
        with pytest.raises(Misconfigured, match="no YAML of names and values"):
            stages.parameters(shouting.stage, file, wrong)
    for text in ("stages: [1]", "stages: {", "- 1"):
        file.write_text(text)
        with pytest.raises(Misconfigured):
            stages.parameters(shouting.stage, file, {})


def test_the_command_line_ends_with_the_folder(
    shouting: Shouting, word: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a script needs for the next stage."""
    monkeypatch.setenv("MINDFU_HOME", str(word.parent / "home"))
    stages.main(shouting.stage, ["--input", f"data={word}", "--input", f"data={word}", "--set", "times=2"])
    said = capsys.readouterr().out
    assert (Path(said.splitlines()[-1]) / "said.txt").read_text() == "HEYHEY" * 2
    assert json.loads(said[: said.rindex("}") + 1])["counts"] == {"letters": 12}


def test_the_command_line_says_what_is_wrong_in_a_sentence(
    shouting: Shouting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for a mistake of the caller's."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        stages.main(shouting.stage, ["--input", "data"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "'--input data' is no NAME=VALUE.\n"


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    """Of another version, or none at all."""
    with pytest.raises(Misconfigured, match=r"has no manifest\.json"):
        stages.manifest(tmp_path)
    (tmp_path / stages.MANIFEST).write_text("{}")
    with pytest.raises(Misconfigured, match="is of another version"):
        stages.manifest(tmp_path)


def test_code_is_known_by_all_that_it_imports_of_ours() -> None:
    """A change of app/errors.py changes every stage that raises its errors."""
    assert sources.fingerprint("train.stages") != sources.fingerprint("train.sources")
    assert "app.errors" in sources.reached("train.stages")
    assert "app.messages" in sources.reached("train.stages")
    assert not {name for name in sources.reached("train.stages") if not name.startswith(("app", "train"))}


def test_a_command_that_is_no_pair_is_refused() -> None:
    """NAME=VALUE."""
    with pytest.raises(InvalidRequest):
        stages.pair("--set", "x")
