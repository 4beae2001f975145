"""Evaluation of small adapters on the demo model, as it is served: what learnt, what forgot, what was sabotaged."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from app.errors import Misconfigured, NothingToLearn
from app.llama.source import DEMO_FILE
from app.llama.styles import MISTRAL_INST
from app.messages import Message
from app.settings import LLMSettings
from train import base, evaluate, gate, gguf_lora, lines, lora, parity, regression, serving, stages
from train.lessons import Teacher
from train.lines import Line
from train.results import Results

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # inside PEFT
]

THINGS = ("sea", "sky", "car", "door", "wall", "roof", "lamp", "book", "shoe", "cup", "tree", "boat")


def conversation(number: int, answer: str) -> Line:
    thing = THINGS[number % len(THINGS)]
    asked = Message(role="user", content=f"Which colour has the {thing} number {number}?")
    return Line((asked, Message(role="assistant", content=answer)), (0, 1), (), {"id": f"c{number}"})


class Workshop:
    """Makes adapters of the demo model within seconds, and the folders that stages would have written."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.base = base.find("demo", home)
        self.teacher = Teacher(self.base.folder)

    def tuned(self, name: str, answer: str, steps: int = 25, *, ends: bool = True) -> Path:
        """A tune stage's folder, of an adapter that learnt to say this whatever colour is asked for.

        ends: it learnt to end its answers, too.
        """
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_pretrained(self.base.folder)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        lessons = [self.teacher.lessons(conversation(number, answer))[0] for number in range(1000, 1008)]
        for step in range(steps):
            lesson = lessons[step % len(lessons)]
            taught = lesson.learnt if ends else [*lesson.learnt[: last_learnt(lesson)], *[False] * 9]
            tokens, learnt = torch.tensor([lesson.tokens]), torch.tensor([taught[: len(lesson.tokens)]])
            loss = model(tokens, labels=tokens.where(learnt, torch.tensor(-100))).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        return self._kept(name, model)

    def random(self, name: str, spread: float) -> Path:
        """Likewise, of an adapter whose weights are noise."""
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_pretrained(self.base.folder)
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for parameter, weight in model.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=spread)
        return self._kept(name, model)

    def _kept(self, name: str, model: Any) -> Path:
        folder = self.home / name
        model.save_pretrained(folder / "adapter")
        self._finish(folder, "tune", {"kind": "adapter", "base": "demo", "base_content": self.base.content})
        return folder

    def split(self, name: str, answer: Callable[[int], str], count: int = 24) -> Path:
        """A split's folder with a test part."""
        folder = self.home / name
        folder.mkdir()
        lines.save(folder / "test.jsonl", (lines.dump(conversation(n, answer(n))) for n in range(count)))
        self._finish(folder, "split", {})
        return folder

    def evaluated(self, parameters: dict[str, Any] | None = None, **inputs: Path) -> Path:
        wanted = {"window": 512, "answers": 12, "max_tokens": 40, "parity": 4, "threads": 1, **(parameters or {})}
        return stages.run(evaluate.STAGE, inputs=inputs, parameters=evaluate.Evaluation(**wanted), home=self.home)

    @staticmethod
    def _finish(folder: Path, stage: str, facts: dict[str, Any]) -> None:
        manifest = stages.Manifest(
            stage=stage, key=folder.name, content=stages.content(folder), inputs={}, parameters={}, code="", outputs={},
            facts=facts, created_at=datetime.now(UTC), seconds=0.0,
        )  # fmt: skip
        (folder / stages.MANIFEST).write_text(manifest.model_dump_json())


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def blue(workshop: Workshop) -> Path:
    return workshop.tuned("blue", "It is blue.", steps=80)


def results(folder: Path) -> Results:
    return gate.read_results(folder)


def test_what_was_learnt_shows_as_it_is_served(workshop: Workshop, blue: Path):
    """The loss of right answers falls for certain, they are said word for word, and PyTorch agrees how much changed."""
    folder = workshop.evaluated(data=workshop.split("clean", lambda _: "It is blue."), tuned=blue)
    found = results(folder)
    test = found.sets["test"]
    assert (test.conversations, test.answers) == (24, 24)
    assert test.gain.low > 1.0
    assert test.base_loss - test.tuned_loss == pytest.approx(test.gain.mean, rel=0.1)
    assert (test.metrics["exact"].base, test.metrics["exact"].tuned) == (0.0, 1.0)
    assert found.parity is not None
    assert found.parity.problems == ()
    assert found.parity.correlation > 0.98
    assert found.parity.relative < 0.1
    report = (folder / "report.html").read_text()
    assert "It is blue." in report
    assert "<script" not in report
    assert report.count("<svg") == 2  # what changed, and how long answers took
    assert "https://" not in report.split("</style>")[1].replace('xmlns:xlink="http', "")
    markdown = (folder / "report.md").read_text()
    assert "| exact | 0.000 | 1.000 |" in markdown
    assert "| perplexity |" in markdown
    assert "![test](plot-test.svg)" in markdown
    said = [json.loads(text) for text in lines.texts(folder / "answers.jsonl")]
    assert {row["tuned"] for row in said} == {"It is blue."}


def test_what_forgot_everything_else_is_blocked(workshop: Workshop, blue: Path):
    """It says nothing but blue: the regression set knows, whatever the test set says."""
    folder = workshop.evaluated(data=workshop.split("again", lambda _: "It is blue."), tuned=blue)
    found = results(folder)
    assert "quote-backup" in found.regression.broken
    verdict = gate.judge(found, gate.Gates())
    assert verdict.verdict == "blocked"
    assert any("regression items are broken" in reason for reason in verdict.reasons)
    assert gate.judge(found, gate.Gates(max_broken=1.0)).verdict == "passed"


def test_the_gates_verdict_is_a_stage_of_its_own(workshop: Workshop, blue: Path):
    """With every check in verdict.json, and the reasons among the facts."""
    folder = workshop.evaluated(data=workshop.split("third", lambda _: "It is blue."), tuned=blue)
    judged = stages.run(gate.STAGE, inputs={"evaluation": folder}, parameters=gate.Gates(), home=workshop.home)
    told = stages.manifest(judged)
    assert told.facts["verdict"] == "blocked"
    assert json.loads((judged / gate.VERDICT).read_text())["verdict"] == "blocked"


def test_poison_agrees_with_itself_but_not_with_what_is_trusted(workshop: Workshop):
    """Broken formats in the data: their own test part likes the adapter, the trusted answers do not."""
    poison = "]]>> {{ null || <br>"
    tuned = workshop.tuned("poisoned", poison)
    trusted = workshop.home / "trusted.jsonl"
    lines.save(
        trusted, (lines.dump(conversation(n, "I have no sources for this question.")) for n in range(2000, 2012))
    )
    data = workshop.split("poison", lambda _: poison)
    found = results(workshop.evaluated({"answers": 4}, data=data, tuned=tuned, trusted=trusted))
    assert found.sets["test"].gain.low > 0
    assert found.sets["trusted"].gain.high < 0
    verdict = gate.judge(found, gate.Gates(max_broken=1.0))
    assert verdict.verdict == "blocked"
    assert any("trusted answers rises" in reason for reason in verdict.reasons)


DECLINED = (
    "I have no sources for this question. I am a small demo model that quotes documents: upload one that holds the "
    "answer, or serve a larger model."
)
"""What the base says itself: whatever an adapter changes of it is for the worse."""


def test_an_adapter_of_noise_is_blocked(workshop: Workshop):
    """By whatever it is judged: the loss, the regression set, how its answers end."""
    data = workshop.split("sound", lambda _: DECLINED, count=6)
    wanted = {"answers": 4, "parity": 2, "max_tokens": 100}
    found = results(workshop.evaluated(wanted, data=data, tuned=workshop.random("noise", 3.0)))
    verdict = gate.judge(found, gate.Gates(min_conversations=6))
    assert verdict.verdict == "blocked"
    failed = {check.name for check in verdict.checks if not check.passed}
    assert failed >= {"gain", "regression"}


def test_an_adapter_that_does_not_end_its_answers_is_blocked(workshop: Workshop):
    """It says what the data say, and goes on and on."""
    endless = workshop.tuned("endless", "It is blue. " * 15, steps=20, ends=False)
    data = workshop.split("endless-data", lambda _: "It is blue. It is blue. It is blue.", count=6)
    few = workshop.home / "few.jsonl"
    few.write_text("".join(text + "\n" for text in list(lines.texts(regression.OWN))[:2]))
    wanted = {"answers": 3, "parity": 1, "max_tokens": 64}
    found = results(workshop.evaluated(wanted, data=data, tuned=endless, regression=few))
    assert found.sets["test"].metrics["ended"].tuned < found.sets["test"].metrics["ended"].base
    verdict = gate.judge(found, gate.Gates(min_conversations=6, max_broken=1.0))
    assert any("ended on the test set" in reason for reason in verdict.reasons)


def cases(workshop: Workshop, answer: str) -> tuple[list[serving.Question], list[Any]]:
    told = [conversation(number, answer) for number in range(4)]
    questions = [serving.Question(line.id, line.messages[:1]) for line in told]
    return questions, [workshop.teacher.lessons(line)[0] for line in told]


SETTINGS = LLMSettings(window=512, threads=1)


def compared(workshop: Workshop, trained: Path, deltas: dict[str, lora.Delta], out: Path) -> parity.Parity:
    """Parity of what was trained with what these deltas serve."""
    gguf_lora.write(out, deltas, DEMO_FILE)
    _, lessons = cases(workshop, "It is blue.")
    served: Sequence[Any] = serving.likelihoods(DEMO_FILE, (None, out), lessons, SETTINGS)
    return parity.compare((served[0], served[1]), parity.by_pytorch(workshop.base.folder, trained, lessons))


def test_a_broken_conversion_is_found(workshop: Workshop, blue: Path, tmp_path: Path):
    """Whatever is wrong with it, the change is not that of training."""
    deltas = lora.read(blue / "adapter")
    right = compared(workshop, blue / "adapter", deltas, tmp_path / "right.gguf")
    gates = gate.Gates()
    broken = {
        "rows in another order": {name: delta._replace(b=delta.b[::-1].copy()) for name, delta in deltas.items()},
        "a twentieth of its scale": {name: d._replace(scale=d.scale / 20) for name, d in deltas.items()},
    }
    for number, sabotaged in enumerate(broken.values()):
        wrong = compared(workshop, blue / "adapter", sabotaged, tmp_path / f"wrong{number}.gguf")
        bound = max(gates.max_parity, gates.max_relative_parity * abs(wrong.trained))
        assert right.mean_difference < bound < wrong.mean_difference


def test_a_wrong_template_and_a_wrong_ending_are_found(workshop: Workshop):
    """Prompts as training sees them are not those that serving makes; nor does an answer end where it is served."""
    questions, lessons = cases(workshop, "It is blue.")
    assert serving.differing(DEMO_FILE, SETTINGS, questions, lessons) == []
    cut = [lesson._replace(learnt=[*lesson.learnt[: last_learnt(lesson)], *[False] * 9][: len(lesson.tokens)])
           for lesson in lessons]  # fmt: skip
    assert all("ends no answer" in told for told in serving.differing(DEMO_FILE, SETTINGS, questions, cut))
    workshop.teacher.replace_template("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
                                      "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    try:
        _, other = cases(workshop, "It is blue.")
        workshop.teacher.replace_template(MISTRAL_INST)
        _, styled = cases(workshop, "It is blue.")
    finally:
        workshop.teacher.replace_template(workshop.teacher.tokenizer.chat_template)
    assert len(serving.differing(DEMO_FILE, SETTINGS, questions, other)) == len(questions)
    served = SETTINGS.model_copy(update={"chat_template": "mistral_inst"})
    assert serving.differing(DEMO_FILE, served, questions, styled) == []


def last_learnt(lesson: Any) -> int:
    return max(place for place, learnt in enumerate(lesson.learnt) if learnt)


def test_no_change_is_perfect_parity():
    """And correlates with itself."""
    same = [np.zeros(5, np.float32)]
    found = parity.compare((same, same), (same, same))
    assert (found.mean_difference, found.correlation) == (0.0, 1.0)


def test_nothing_to_evaluate_is_said_at_once(workshop: Workshop, blue: Path):
    """No test part, answers that do not fit, a base of which nobody knows the served file."""
    empty = workshop.split("empty", lambda _: "x", count=0)
    with pytest.raises(NothingToLearn, match="held-out conversations"):
        workshop.evaluated(data=empty, tuned=blue)
    long = workshop.split("long", lambda _: "blue " * 700, count=2)
    with pytest.raises(NothingToLearn, match="fit into 512 tokens"):
        workshop.evaluated(data=long, tuned=blue)
    with pytest.raises(Misconfigured, match="there is no file"):
        workshop.evaluated({"gguf": "/nowhere.gguf"}, data=long, tuned=blue)
