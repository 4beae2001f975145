"""The stages as one: what a run does step after step, on what, with which parameters. Pure but for `check`.

    export | convert …  →  validate  →  split  →  tune  →  evaluate  →  gate  →  publish

What can be known to fail is known before anything that takes time: `check` before the first step, `enough` behind those
that gather the data.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import InvalidRequest, Misconfigured, NothingToLearn
from app.llama.styles import template_of
from app.runs import Order, StageName
from train import base, lines, stages
from train.recipe import STYLE_SETTING, Recipe
from train.split import Split
from train.stages import Stage

DATA, PREFERENCES = "data.jsonl", "preferences.jsonl"
FLOW: Mapping[StageName, Mapping[str, StageName]] = {
    "validate": {},  # its inputs are those that gather
    "split": {"data": "validate"},
    "tune": {"data": "split"},
    "evaluate": {"data": "split", "tuned": "tune"},
    "gate": {"evaluation": "evaluate"},
    "publish": {"data": "split", "tuned": "tune", "evaluation": "evaluate", "gate": "gate"},
}
"""What each stage reads: the name of an input, and the stage whose folder it is."""
GATHERING: tuple[StageName, ...] = ("export", "convert")


class Step(NamedTuple):
    """One stage of a run. name: convert.2 is the second of its stage. reads: inputs that are earlier steps; files:
    inputs that are there already.
    """

    name: str
    stage: StageName
    reads: Mapping[str, str]
    files: Mapping[str, Path]


class Written(NamedTuple):
    """Uploaded files of an order, where they were written. conversations: to convert; preferences: folders of them."""

    conversations: tuple[Path, ...] = ()
    preferences: tuple[Path, ...] = ()
    trusted: Path | None = None


def steps(order: Order, uploads: Written) -> tuple[Step, ...]:
    """What a run does, in order, up to `order.until`. Raises InvalidRequest where there is nothing to learn from."""
    gathered: list[Step] = []
    if order.conversations:
        gathered.append(Step("export", "export", {}, {}))
    files = (*map(Path, order.paths), *uploads.conversations)
    for number, path in enumerate([*files, None] if order.dataset else files, 1):
        read = {} if path is None else {"data": path}
        gathered.append(Step("convert" if number == 1 else f"convert.{number}", "convert", {}, read))
    if not gathered and not uploads.preferences:
        raise InvalidRequest("The run names nothing to learn from: no conversations, files, paths or data set.", "data")
    names = [step.name for step in gathered]
    told = [*gathered, Step("validate", "validate", _numbered(names), _numbered(uploads.preferences, behind=names))]
    for stage, reads in FLOW.items():
        if stage != "validate":
            told.append(Step(stage, stage, reads, _files(order, uploads, stage)))
    last = max(place for place, step in enumerate(told) if step.stage == order.until)
    return tuple(told[: last + 1])


def parameters(order: Order, step: Step, kind: type[Any]) -> Any:
    """Of a step, as they were given. Raises Misconfigured, naming the one that is wrong."""
    given = dict(order.parameters.get(step.stage, {}))
    if step.stage == "convert":
        given.pop("dataset", None)
        if not step.files:
            given["dataset"] = order.dataset
    made = stages.checked(step.stage, kind, given)
    if step.stage == "tune" and order.rate_factor != 1:
        return made.model_copy(update={"learning_rate": made.rate * order.rate_factor})
    return made


def stage_of(step: Step) -> Stage[Any]:
    """The stage of a step. Loading some takes seconds."""
    found: Stage[Any] = importlib.import_module(f"train.{step.stage}").STAGE
    return found


def check(order: Order) -> None:
    """Raises, within a second, where a run cannot succeed whatever the data are: no base, nobody to serve it."""
    recipe = stages.checked("tune", Recipe, order.parameters.get("tune", {}))
    base.present(recipe.base)
    template_of(recipe.chat_template, STYLE_SETTING)
    stages.checked("split", Split, order.parameters.get("split", {}))
    for name, path in order.inputs.items():
        if not Path(path).exists():
            raise Misconfigured(name, f"there is no {path}", "Give a file of the machine that trains.")
    for path in order.paths:
        if not Path(path).exists():
            raise Misconfigured("data", f"there is no {path}", "Give a file or folder of the machine that trains.")
    if order.until in {"evaluate", "gate", "publish"}:
        if recipe.adapter is None:
            problem = "the preset 'full' makes a model, and adapters are what is served"
            raise Misconfigured("tune.preset", problem, "Take another preset, or end the run behind tune.")
        served = order.parameters.get("evaluate", {}).get("gguf")
        if served is None and not recipe.base.endswith(".gguf") and recipe.base != "demo":
            problem = f"the base {recipe.base} is no GGUF, so nothing says which file serves it"
            raise Misconfigured("evaluate.gguf", problem, "Give the GGUF of the same model that is served.")
        if served is not None and not Path(str(served)).expanduser().is_file():
            raise Misconfigured("evaluate.gguf", f"there is no file {served}", "Give the GGUF that is served.")


class Gathered(NamedTuple):
    """How much there is to learn from: conversations with an answer to learn, and preferences. held_out: about how
    many of them a model will be judged by.
    """

    conversations: int
    preferences: int
    held_out: float


def enough(order: Order, folders: Sequence[Path]) -> Gathered:
    """Count what the gathering stages found. Raises NothingToLearn where training would, some steps later."""
    recipe = stages.checked("tune", Recipe, order.parameters.get("tune", {}))
    split = stages.checked("split", Split, order.parameters.get("split", {}))
    files = [folder / DATA for folder in folders if (folder / DATA).exists()]
    learnt = sum(1 for file in files for line in lines.read(file) if any(line.weights))
    pairs = [pair for folder in folders for pair in lines.read_preferences(folder / PREFERENCES)]
    found = Gathered(learnt, len(pairs), learnt * split.test)
    needed = max(split.min_conversations, recipe.min_conversations)
    if recipe.method == "dpo":
        what = "preferences (a corrected answer, or one rated up beside one rated down)"
        remedy = "Correct or rate answers, or use method: sft."
        if len(pairs) < recipe.min_conversations:
            raise NothingToLearn(what, len(pairs), recipe.min_conversations, remedy)
        if all(pair.chosen == pair.rejected for pair in pairs):
            what = "preferences in which the two answers differ"
            raise NothingToLearn(what, 0, recipe.min_conversations, "One class of answers teaches no preference.")
    elif learnt < needed:
        what, remedy = "conversations with an answer to learn", "Correct answers, rate some up, or convert other data."
        raise NothingToLearn(what, learnt, needed, remedy)
    return found


def renumbered(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The inputs of a step of which some are missing: data, data.2 … without a gap."""
    data = [path for name, path in inputs.items() if name.partition(".")[0] == "data"]
    return _numbered(data) | {name: path for name, path in inputs.items() if name.partition(".")[0] != "data"}


def _numbered(given: Sequence[Any], *, behind: Sequence[Any] = ()) -> dict[str, Any]:
    """Inputs of one name: data, data.2, data.3 …"""
    first = len(behind) + 1
    return {"data" if number == 1 else f"data.{number}": one for number, one in enumerate(given, first)}


def _files(order: Order, uploads: Written, stage: StageName) -> dict[str, Path]:
    """Further files that a stage was given."""
    found = {
        name.partition(".")[2]: Path(path) for name, path in order.inputs.items() if name.partition(".")[0] == stage
    }
    return found | ({"trusted": uploads.trusted} if stage == "evaluate" and uploads.trusted else {})
