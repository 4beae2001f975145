"""The stages as one: in which order, on what, and what is known to fail before it begins."""

import json
from pathlib import Path
from typing import Any

import pytest

from app import params
from app.errors import InvalidRequest, MindFuError, Misconfigured, NothingToLearn
from app.runs import Order
from tests.work import work_s
from train import pipeline
from train.export import Export
from train.pipeline import Written
from train.recipe import Recipe
from train.run import preferred

NONE = Written()


def names(order: Order, uploads: Written = NONE) -> list[str]:
    return [step.name for step in pipeline.steps(order, uploads)]


def test_a_run_goes_from_conversations_to_a_version():
    """Each stage once, in the order in which one reads what another wrote."""
    told = pipeline.steps(Order(), NONE)
    assert [step.stage for step in told] == [
        "export", "validate", "split", "tune", "evaluate", "gate", "publish",
    ]  # fmt: skip
    seen: set[str] = set()
    for step in told:
        assert set(step.reads.values()) <= seen
        seen.add(step.name)


def test_everything_that_is_named_is_gathered_and_merged(tmp_path: Path):
    """Conversations, files, a data set and uploads are one data set behind `validate`."""
    order = Order(paths=("/a.csv", "/b"), dataset="org/name")
    uploads = Written((Path("/u.jsonl"),), (Path("/pairs"),))
    told = pipeline.steps(order, uploads)
    assert [step.name for step in told[:5]] == ["export", "convert", "convert.2", "convert.3", "convert.4"]
    assert [step.files.get("data") for step in told[1:5]] == [Path("/a.csv"), Path("/b"), Path("/u.jsonl"), None]
    validate = told[5]
    assert validate.reads == {
        "data": "export", "data.2": "convert", "data.3": "convert.2", "data.4": "convert.3", "data.5": "convert.4",
    }  # fmt: skip
    assert validate.files == {"data.6": Path("/pairs")}
    parameters = pipeline.parameters(order, told[4], pipeline.stage_of(told[4]).parameters)
    assert parameters.dataset == "org/name"
    assert pipeline.parameters(order, told[1], type(parameters)).dataset is None


def test_a_source_that_is_missing_leaves_no_gap():
    """The others are data, data.2 … again; other inputs stay as they are."""
    given = {"data.2": Path("/b"), "data.4": Path("/d"), "trusted": Path("/t")}
    assert pipeline.renumbered(given) == {"data": Path("/b"), "data.2": Path("/d"), "trusted": Path("/t")}


def test_a_run_ends_where_it_is_told_to():
    """Behind the stage that is named."""
    assert names(Order(until="split"))[-1] == "split"


def test_a_run_on_nothing_is_refused():
    """No conversations, and nothing else."""
    with pytest.raises(InvalidRequest, match="nothing to learn from"):
        names(Order(conversations=False))


def test_further_files_go_to_their_stage():
    """By the stage's name and the input's."""
    steps = pipeline.steps(Order(inputs={"evaluate.regression": "/r.jsonl"}), Written(trusted=Path("/t.jsonl")))
    given = {step.name: dict(step.files) for step in steps if step.files}
    assert given == {"evaluate": {"regression": Path("/r.jsonl"), "trusted": Path("/t.jsonl")}}


def test_a_rate_can_be_a_multiple_of_what_it_would_be():
    """As OpenAI's learning_rate_multiplier has it."""
    order = Order(rate_factor=0.5, parameters={"tune": {"learning_rate": 1e-3}})
    [step] = [step for step in pipeline.steps(order, NONE) if step.name == "tune"]
    assert pipeline.parameters(order, step, Recipe).rate == 5e-4


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (Order(parameters={"tune": {"base": "/nowhere.gguf"}}), Misconfigured, "there is no file /nowhere.gguf"),
        (Order(parameters={"tune": {"epochs": 0}}), Misconfigured, "tune.epochs"),
        (Order(parameters={"tune": {"epoch": 1}}), Misconfigured, "tune.epoch"),
        (Order(parameters={"split": {"train": 0.5}}), Misconfigured, "add up to"),
        (
            Order(parameters={"tune": {"preset": "full", "quantise": False}}),
            Misconfigured,
            "adapters are what is served",
        ),
        (Order(parameters={"evaluate": {"gguf": "/no.gguf"}}), Misconfigured, "evaluate.gguf: there is no file"),
        (Order(paths=("/nowhere",)), Misconfigured, "there is no /nowhere"),
        (Order(inputs={"evaluate.trusted": "/nowhere"}), Misconfigured, "evaluate.trusted: there is no /nowhere"),
    ],
)
def test_what_cannot_succeed_is_told_within_a_second(order: Order, error: type[MindFuError], message: str):
    """Before any stage has begun, naming what to change."""

    def fails() -> None:
        with pytest.raises(error, match=message):
            pipeline.check(order)

    assert work_s(fails, tries=1) < 1


def line(weight: int) -> str:
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "weight": weight}]
    return json.dumps({"messages": said})


def pair(chosen: str, rejected: str) -> str:
    answers = {"chosen": chosen, "rejected": rejected}
    told: dict[str, Any] = {name: {"role": "assistant", "content": text} for name, text in answers.items()}
    return json.dumps({"prompt": [{"role": "user", "content": "?"}], **told})


@pytest.mark.parametrize(
    ("data", "preferences", "parameters", "message"),
    [
        ([], [], {}, "Found 0 conversations with an answer to learn, needed 10"),
        ([line(0)] * 20, [], {}, "Found 0 conversations"),
        ([line(1)] * 9, [], {}, "Found 9 conversations"),
        ([line(1)] * 20, [], {"tune": {"method": "dpo"}}, "Found 0 preferences"),
        ([], [pair("a", "a")] * 9, {"tune": {"method": "dpo"}}, "One class of answers"),
    ],
)
def test_too_little_or_one_class_of_data_is_told_before_it_is_looked_at_closely(
    data: list[str], preferences: list[str], parameters: Any, message: str, tmp_path: Path
):
    """As soon as it is gathered."""
    (tmp_path / pipeline.DATA).write_text("\n".join(data))
    (tmp_path / pipeline.PREFERENCES).write_text("\n".join(preferences))
    with pytest.raises(NothingToLearn, match=message):
        pipeline.enough(Order(parameters=parameters), [tmp_path])


def test_enough_is_counted(tmp_path: Path):
    """Over all folders, with how many will be held out."""
    (tmp_path / pipeline.DATA).write_text("\n".join([line(1)] * 30))
    assert pipeline.enough(Order(), [tmp_path, tmp_path]) == (60, 0, 6.0)


def test_preferences_of_openai_become_ours():
    """A file of them is known by its first line; one of conversations is none."""
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    answers = [[{"role": "assistant", "content": text}] for text in ("Hi.", "Go away.")]
    told = {"input": asked, "preferred_output": answers[0], "non_preferred_output": answers[1]}
    [made] = preferred(json.dumps(told).encode()) or []
    assert json.loads(made)["chosen"] == answers[0][0]
    assert json.loads(made)["rejected"] == answers[1][0]
    assert preferred(line(1).encode()) is None
    assert preferred(b"no json") is None


def test_parameters_are_those_of_the_file_with_what_is_changed(tmp_path: Path):
    """A section within a section keeps what is not named; sections that no run has are left alone."""
    file = tmp_path / "params.yaml"
    file.write_text("tune: {base: demo, epochs: 3}\nvalidate: {quality: {a: 1, b: 2}}\npretrain: {x: 1}\n")
    changes = {"tune": {"epochs": 1}, "validate": {"quality": {"b": 3}}, "export": {"tenants": ["x"]}}
    assert params.changed(params.read(file), changes) == {
        "tune": {"base": "demo", "epochs": 1}, "validate": {"quality": {"a": 1, "b": 3}}, "export": {"tenants": ["x"]},
    }  # fmt: skip
    assert params.read(tmp_path / "none.yaml") == {}


def test_a_file_of_parameters_that_cannot_be_read_is_named(tmp_path: Path):
    """Broken YAML, and YAML that is no sections."""
    file = tmp_path / "params.yaml"
    for text in ("tune: [", "- a\n"):
        file.write_text(text)
        with pytest.raises(Misconfigured, match=r"params\.yaml"):
            params.read(file)


def test_whose_conversations_are_exported_is_a_parameter_like_any():
    """The tenant of the run is set by who asks for it."""
    order = Order(parameters={"export": {"tenants": ["acme"]}})
    assert pipeline.parameters(order, pipeline.steps(order, NONE)[0], Export).tenants == ("acme",)
