"""Stage `evaluate`: the base against the tuned model, on conversations that neither was trained on, as they are served.

    python -m train.evaluate --input data=.mindfu/datasets/split-… --input tuned=.mindfu/runs/tune-…

The adapter is written as it will be served (adapter.gguf), and both models answer on the engine that serves. `trusted`
are further conversations whose answers are known to be right, whatever the data hold: poisoned data agree with
themselves, and not with those. Writes results.json, answers.jsonl, regression.jsonl, report.md and report.html with
their plots. What this does not do: decide (train/gate.py).
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from app.errors import InvalidRequest, Misconfigured, NothingToLearn
from app.llama.source import DEMO_FILE
from app.llama.styles import AUTO, name_of
from app.messages import Message, Strict
from app.settings import DEMO_MODEL, LLMSettings
from train import base, gguf_lora, lines, lora, parity, plots, regression, report, serving, stages
from train import preference as preferring
from train.lessons import Lesson, Teacher
from train.preference import Judge, Pair
from train.results import Judged, Metric, Preference, Regression, Results, Speed
from train.scores import bootstrap, scored
from train.serving import Question, Said
from train.stages import Outcome, Stage, Work

ADAPTER, RESULTS, TEMPLATE = "adapter.gguf", "results.json", "chat_template.jinja"
SETTING = "evaluate.gguf"


class Evaluation(Strict):
    """The parameters of the stage `evaluate`."""

    gguf: str | None = None  # the file that serves; None: the base's own
    window: int = Field(2048, ge=128)  # tokens of a conversation; longer ones are left out
    slots: int = Field(8, ge=1)
    threads: int | None = Field(None, ge=1)
    gpu_layers: int = Field(0, ge=-1)
    most: int = Field(1000, ge=1)  # answers of a set whose likelihood is measured
    answers: int = Field(100, ge=0)  # of them, how many are also generated
    max_tokens: int = Field(256, ge=1)  # of a generated answer
    parity: int = Field(16, ge=0)  # answers that are held against PyTorch; 0: none, which the gates do not pass
    judge: Judge | None = None  # who prefers one of two answers; None: nobody is asked

    def settings(self, path: Path, style: str) -> LLMSettings:
        """Of the engine."""
        wanted = self.model_dump(include={"window", "slots", "threads", "gpu_layers"})
        return LLMSettings(model=str(path), name="evaluated", chat_template=style, **wanted)


class Case(NamedTuple):
    """An answer of a held-out conversation: what was asked, what the answer should be, and both as tokens."""

    question: Question
    reference: Message
    lesson: Lesson


def check(inputs: Mapping[str, Path], parameters: Evaluation) -> None:
    """Raises where there is nothing to evaluate, or nothing to evaluate it on."""
    tuned = stages.manifest(inputs["tuned"])
    if tuned.facts.get("kind") != "adapter":
        problem = f"{inputs['tuned']} holds a whole model, not an adapter"
        raise Misconfigured("tuned", problem, "Tune with another preset than 'full': adapters are what is served.")
    served_file(str(tuned.facts["base"]), parameters.gguf, SETTING)
    if parameters.judge:
        parameters.judge.check()
    if not any(any(line.weights) for line in lines.read(_test(inputs["data"]))):
        what, remedy = "held-out conversations with an answer", "Set split.test above 0, or gather more data."
        raise NothingToLearn(what, 0, 1, remedy)


def make(work: Work[Evaluation]) -> Outcome:
    """Write the adapter, ask both models, compare, report."""
    parameters, tuned = work.parameters, work.inputs["tuned"]
    told = stages.manifest(tuned)
    found = base.find(str(told.facts["base"]), work.home)
    path = served_file(str(told.facts["base"]), parameters.gguf, SETTING)
    adapter, template = work.folder / ADAPTER, trained_template(told)
    settings = parameters.settings(path, AUTO if template is None else _written(work.folder / TEMPLATE, template))
    gguf_lora.write(adapter, lora.read(tuned / "adapter"), path, taught_by=name_of(template))
    teacher = Teacher(found.folder, template)
    sets: dict[str, Judged] = {}
    all_answers: list[dict[str, Any]] = []
    cases: dict[str, list[Case]] = {}
    times: dict[str, list[Said]] = {"base": [], "tuned": []}
    for name, file in _sets(work.inputs).items():
        work.progress(len(sets), None, f"the likelihood of the {name} set's answers")
        dropped: Counter[str] = Counter()
        cases[name] = list(_cases(teacher, file, parameters, dropped))
        if not cases[name]:
            what = f"held-out conversations of the {name} set that fit into {parameters.window} tokens"
            raise NothingToLearn(what, 0, 1, "Raise evaluate.window.")
        judged = _likelihood(path, adapter, cases[name], settings, dropped)
        work.progress(len(sets), None, f"answers to the {name} set")
        chosen = cases[name][: parameters.answers]
        metrics, rows = _answered(path, adapter, chosen, settings, parameters, times)
        work.progress(len(sets), None, f"what the judge prefers of the {name} set")
        preference = _preferred(parameters.judge, chosen, rows, work.home)
        sets[name] = judged.model_copy(update={"metrics": metrics, "preference": preference})
        all_answers += [{"set": name, **row} for row in rows]
    work.progress(len(sets), None, "the regression set")
    outcomes = _regression(work.inputs.get("regression", regression.OWN), path, adapter, settings, parameters)
    work.progress(len(sets), None, "parity with PyTorch")
    compared = _parity(path, adapter, found.folder, tuned / "adapter", cases["test"][: parameters.parity], settings)
    results = Results(
        file=path.name,
        base=found.content,
        adapter=stages.content(adapter),
        sets=sets,
        regression=Regression(
            items=len(outcomes),
            passed=sum(one.base_failure is None for one in outcomes),
            broken=tuple(one.id for one in outcomes if one.broken),
            mended=tuple(one.id for one in outcomes if one.base_failure and not one.tuned_failure),
        ),
        parity=compared,
        base_speed=_speed(times["base"]),
        tuned_speed=_speed(times["tuned"]),
    )
    stages.write(work.folder / RESULTS, results.model_dump_json(indent=1) + "\n")
    lines.save(work.folder / "answers.jsonl", (json.dumps(row, ensure_ascii=False) for row in all_answers))
    stages.write(work.folder / "regression.jsonl", regression.dump(outcomes))
    plots.write(work.folder, results, times, tuned / "history.jsonl")
    report.write(work.folder, results, outcomes, all_answers)
    test = sets["test"]
    counts = {"conversations": test.conversations, "answers": test.answers, "regression_items": len(outcomes)}
    facts = {"base_loss": test.base_loss, "tuned_loss": test.tuned_loss, "gain": test.gain.mean}
    return Outcome(counts, test.dropped, facts)


def trained_template(tuned: stages.Manifest) -> str | None:
    """The chat template that a model was tuned by; None: its own."""
    return None if (told := tuned.facts.get("chat_template")) is None else str(told)


def _written(path: Path, text: str) -> str:
    stages.write(path, text)
    return str(path)


def served_file(name: str, given: str | None, setting: str) -> Path:
    """The GGUF that serves. name: the base's; given: what the setting says. Raises Misconfigured."""
    path = DEMO_FILE if given is None and name == DEMO_MODEL else Path(given or name).expanduser()
    if given is None and path.suffix != ".gguf":
        problem = f"the base {name} is no GGUF, so nothing says which file serves it"
        raise Misconfigured(setting, problem, "Give the GGUF of the same model that is served.")
    if not path.is_file():
        raise Misconfigured(setting, f"there is no file {path}", "Give the GGUF that is served.")
    return path


def _test(data: Path) -> Path:
    path = data / "test.jsonl"
    if not path.exists():
        message = f"{data} has no test.jsonl: it is no split. Run train.split first."
        raise InvalidRequest(message, "data")
    return path


def _sets(inputs: Mapping[str, Path]) -> dict[str, Path]:
    return {"test": _test(inputs["data"])} | ({"trusted": inputs["trusted"]} if "trusted" in inputs else {})


def _cases(teacher: Teacher, file: Path, parameters: Evaluation, dropped: Counter[str]) -> Iterator[Case]:
    """Every answer that the lines say is worth learning, each as if it were the last one."""
    count = 0
    for line in lines.read(file):
        for place in (place for place, weight in enumerate(line.weights) if weight):
            if count >= parameters.most:
                dropped["beyond evaluate.most"] += 1
                continue
            alone = line._replace(messages=line.messages[: place + 1], weights=(*([0] * place), 1))
            try:
                (lesson,) = teacher.lessons(alone)
            except InvalidRequest:
                dropped["the template cannot show it"] += 1
                continue
            if len(lesson.tokens) > parameters.window:
                dropped["longer than the window"] += 1
                continue
            count += 1
            yield Case(Question(line.id, line.messages[:place], line.tools), line.messages[place], lesson)


def _likelihood(
    path: Path, adapter: Path, cases: Sequence[Case], settings: LLMSettings, dropped: Mapping[str, int]
) -> Judged:
    lessons = [case.lesson for case in cases]
    before, after = serving.likelihoods(path, (None, adapter), lessons, settings)
    gains: dict[str, list[float]] = {}
    for case, one, other in zip(cases, before, after, strict=True):
        gains.setdefault(case.question.id, []).append(float(other.mean() - one.mean()))
    return Judged(
        conversations=len(gains),
        answers=len(cases),
        tokens=sum(len(one) for one in before),
        base_loss=-float(np.concatenate(before).mean()),
        tuned_loss=-float(np.concatenate(after).mean()),
        gain=bootstrap([sum(each) / len(each) for each in gains.values()]),
        dropped=dict(dropped),
    )


def _answered(
    path: Path,
    adapter: Path,
    cases: Sequence[Case],
    settings: LLMSettings,
    parameters: Evaluation,
    times: dict[str, list[Said]],
) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
    """Metrics of generated answers, and the answers."""
    if not cases:
        return {}, []
    questions = [case.question for case in cases]
    said = {
        name: asyncio.run(serving.answers(path, which, questions, settings, max_tokens=parameters.max_tokens))
        for name, which in (("base", None), ("tuned", adapter))
    }
    for name, each in said.items():
        times[name] += each
    scores = {
        name: [scored(one.message, case.reference, ended=one.ended) for one, case in zip(each, cases, strict=True)]
        for name, each in said.items()
    }
    rows = [
        {
            "id": case.question.id,
            "asked": next((m.content for m in reversed(case.question.messages) if m.role == "user"), ""),
            "reference": _told(case.reference),
            **{name: _told(said[name][number].message) for name in said},
            "scores": {name: scores[name][number] for name in scores},
        }
        for number, case in enumerate(cases)
    ]
    return _metrics([case.question.id for case in cases], scores["base"], scores["tuned"]), rows


def _preferred(
    judge: Judge | None, cases: Sequence[Case], rows: Sequence[dict[str, Any]], home: Path
) -> Preference | None:
    """What the judge says of generated answers, which is noted in their rows, too."""
    if judge is None or not cases:
        return None
    pairs = [Pair(case.question.id, case.question.messages, row["reference"], row["base"], row["tuned"])
             for case, row in zip(cases, rows, strict=True)][: judge.answers]  # fmt: skip
    winners, preference = asyncio.run(preferring.judged(judge, pairs, home))
    for row, winner in zip(rows, winners, strict=False):
        row["preferred"] = winner
    return preference


def _metrics(
    ids: Sequence[str], base_scores: Sequence[Mapping[str, float]], tuned_scores: Sequence[Mapping[str, float]]
) -> dict[str, Metric]:
    metrics = {}
    for name in sorted({name for row in base_scores for name in row}):
        changes: dict[str, list[float]] = {}
        pairs = [(id_, one[name], other[name])
                 for id_, one, other in zip(ids, base_scores, tuned_scores, strict=True) if name in one]  # fmt: skip
        for id_, one, other in pairs:
            changes.setdefault(id_, []).append(other - one)
        metrics[name] = Metric(
            base=sum(one for _, one, _ in pairs) / len(pairs),
            tuned=sum(other for _, _, other in pairs) / len(pairs),
            change=bootstrap([sum(each) / len(each) for each in changes.values()]),
        )
    return metrics


def _regression(
    file: Path, path: Path, adapter: Path, settings: LLMSettings, parameters: Evaluation
) -> tuple[regression.Outcome, ...]:
    items = regression.read(file)
    questions = [item.question() for item in items]
    before, after = (
        asyncio.run(serving.answers(path, which, questions, settings, max_tokens=parameters.max_tokens))
        for which in (None, adapter)
    )
    return regression.compared(items, before, after)


def _parity(
    path: Path, adapter: Path, folder: Path, trained: Path, cases: Sequence[Case], settings: LLMSettings
) -> parity.Parity | None:
    if not cases:
        return None
    lessons = [case.lesson for case in cases]
    problems = serving.differing(path, settings, [case.question for case in cases], lessons)
    before, after = serving.likelihoods(path, (None, adapter), lessons, settings)
    return parity.compare((before, after), parity.by_pytorch(folder, trained, lessons), problems)


def _speed(said: Sequence[Said]) -> Speed | None:
    timed = [one for one in said if one.tokens and one.seconds]
    if not timed:
        return None
    middle, slow = np.percentile([one.seconds for one in timed], [50, 95])
    return Speed(
        first_s=sum(one.first_s for one in timed) / len(timed),
        tokens_per_s=sum(one.tokens / one.seconds for one in timed) / len(timed),
        answer_s=float(middle),
        slow_s=float(slow),
    )


def _told(message: Message) -> str:
    return message.content + "".join(f" → {call.name}({call.arguments})" for call in message.tool_calls)


STAGE = Stage(
    name="evaluate",
    does="Compare the tuned model with its base, as they are served.",
    place="runs",
    inputs=("data", "tuned", "trusted?", "regression?"),
    parameters=Evaluation,
    make=make,
    check=check,
)

if __name__ == "__main__":
    stages.main(STAGE)
