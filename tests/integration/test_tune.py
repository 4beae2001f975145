"""Tuning on Ray Train: an adapter comes out, a killed worker or run goes on, and what cannot succeed fails at once."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import bitsandbytes
import psutil
import pytest
import torch
import transformers

from app.errors import InvalidRequest, MindFuError, Misconfigured, NothingToLearn
from tests.work import work_s
from train import attention, base, cluster, lines, stages, tracking, tune
from train.fitting import Job, fit
from train.lessons import Teacher
from train.recipe import Recipe
from train.stages import Work

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers' own calls of itself
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray, and of MLflow's SQLite
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ONCE = {"window": 32, "quantise": False, "max_failures": 1, "evaluate_steps": 4, "log_steps": 2}
SMALL = Recipe(window=128, batch=1, accumulation=1, epochs=1, log_steps=1, evaluate_steps=2, rank=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop whose answers are always the same: easily learnt."""
    folder = tmp_path_factory.mktemp("split")
    for part, numbers in (("train", range(12)), ("validation", range(12, 15))):
        said = [
            [
                {"role": "user", "content": f"Order {number}, please."},
                {"role": "assistant", "content": "It is on its way."},
            ]
            for number in numbers
        ]
        texts = [json.dumps({"messages": messages}) for messages in said]
        (folder / f"{part}.jsonl").write_text("\n".join(texts) + "\n")
        pairs = [{"prompt": m[:1], "chosen": m[1], "rejected": {"role": "assistant", "content": "No."}} for m in said]
        (folder / f"preferences-{part}.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    return folder


def rows(split: Path, home: Path, folder: Path, recipe: Recipe) -> Job:
    """What a worker gets, as the stage makes it."""
    found = base.find(recipe.base, home)
    work = Work({"data": split}, recipe, folder, home, {"base": found.content})
    tune.tokenise(work, found, folder / "rows")
    return Job(base=found.folder, content=found.content, rows=folder / "rows", recipe=recipe)


def test_a_node_without_the_base_makes_its_own(home: Path, tmp_path: Path):
    """Models are each node's own on a cluster: another node's worker finds no folder where the head has one."""
    found = base.find("demo", home)
    job = Job(base=home / "models" / "of-the-head", content=found.content, rows=tmp_path, recipe=SMALL)
    assert tune.of_this_node(job, home).base == found.folder
    with pytest.raises(Misconfigured, match="another model on this node than on the head"):
        tune.of_this_node(job.model_copy(update={"content": "another"}), home)


class Told:
    """Keeps what is reported, and each checkpoint."""

    def __init__(self, folder: Path, *, die_at: float | None = None) -> None:
        self.folder, self.numbers, self.checkpoints, self.die_at = (
            folder,
            list[dict[str, float]](),
            list[Path](),
            die_at,
        )

    def __call__(self, numbers: dict[str, float], checkpoint: Path | None) -> None:
        self.numbers.append(numbers)
        if checkpoint is not None:
            self.checkpoints.append(self.folder / f"kept-{len(self.checkpoints)}")
            shutil.copytree(checkpoint, self.checkpoints[-1])
            if numbers["step"] == self.die_at:
                raise InterruptedError

    def of(self, name: str) -> list[float]:
        return [numbers[name] for numbers in self.numbers if name in numbers]


def test_what_is_switched_off_of_bitsandbytes_is_there():
    """On any CPU: where it is called otherwise one day, QLoRA fails on some (train/fitting.py)."""
    assert hasattr(bitsandbytes.nn.Linear4bit(64, 64), "support_avx512bf16_for_cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {},  # QLoRA: NF4 with double quantisation, 8-bit AdamW, on this CPU
        {"quantise": False, "packing": False, "dropout": 0.1},
        {"quantise": False, "preset": "full", "rank": None, "learning_rate": 1e-4},
        {"quantise": False, "method": "dpo"},
    ],
)
def test_every_way_of_tuning_lowers_the_validation_loss(
    changes: dict[str, object], split: Path, home: Path, tmp_path: Path
) -> None:
    """Supervised, packed and not; all weights; preferences."""
    recipe = Recipe.model_validate(SMALL.model_dump() | changes)
    told = Told(tmp_path)
    fit(rows(split, home, tmp_path, recipe), report=told, scratch=tmp_path / "scratch")
    losses = told.of("eval_loss")
    assert len(losses) >= 2
    assert losses[-1] < losses[0]
    if recipe.adapter is not None:
        kept = json.loads((told.checkpoints[-1] / "adapter_config.json").read_text())
        assert kept["lora_dropout"] == recipe.adapter.dropout
    assert told.of("tokens_per_s")[0] > 0 or recipe.method == "dpo"
    if recipe.method == "dpo":  # the chosen answers got likelier than the rejected ones, which they were not before
        assert told.of("eval_rewards/margins")[-1] > 0.01
        assert told.of("eval_rewards/accuracies")[-1] == 1
    names = {file.name for file in told.checkpoints[-1].iterdir()}
    assert ("model.safetensors" if recipe.adapter is None else "adapter_model.safetensors") in names


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_that_of_the_learnt_tokens_alone(packing: bool, home: Path, tmp_path: Path) -> None:
    """With tools, several answers, and one of weight 0: as computed by hand, one conversation at a time."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bern"}'}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    ask, no = {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}
    called = [ask, {"role": "assistant", "content": None, "tool_calls": [call]},
              {"role": "tool", "content": "sunny", "tool_call_id": "1"}, no]  # fmt: skip
    told = [{"messages": called, "tools": tools}, {"messages": [ask, no | {"weight": 0}, ask, no]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    (tmp_path / "validation.jsonl").write_text("")
    changes = {"packing": packing, "quantise": False, "precision": "fp32", "max_steps": 1, "batch": 2}
    recipe = Recipe.model_validate(SMALL.model_dump() | changes | {"window": 256})
    heard = Told(tmp_path)
    fit(rows(tmp_path, home, tmp_path, recipe), report=heard, scratch=tmp_path / "scratch")
    found = base.find("demo", home)
    teacher, model = Teacher(found.folder), transformers.AutoModelForCausalLM.from_pretrained(found.folder)
    losses = []
    for lesson in (teacher.lessons(lines.parse(json.dumps(one)))[0] for one in told):
        tokens = torch.tensor([lesson.tokens])
        likely = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        losses.append(-likely[torch.tensor(lesson.learnt[1:])])
    assert len(losses[0]) > 20  # the call with its arguments, and "No.", each with the end of its turn
    assert heard.of("loss")[0] == pytest.approx(float(torch.cat(losses).detach().mean()), rel=1e-4)


def test_a_run_that_died_ends_as_if_it_had_not(split: Path, home: Path, tmp_path: Path) -> None:
    """From the checkpoint on it has the losses of a run in one go: data, optimiser and rate go on where they were."""
    recipe = Recipe.model_validate(SMALL.model_dump() | {"quantise": False, "batch": 2, "window": 32})
    job = rows(split, home, tmp_path, recipe)
    whole, dead, rest = Told(tmp_path / "a"), Told(tmp_path / "b", die_at=2.0), Told(tmp_path / "c")
    fit(job, report=whole, scratch=tmp_path / "1")
    with pytest.raises(InterruptedError):
        fit(job, report=dead, scratch=tmp_path / "2")
    fit(job, report=rest, scratch=tmp_path / "3", resume=dead.checkpoints[-1])
    assert rest.of("eval_loss")[-1] == pytest.approx(whole.of("eval_loss")[-1], rel=1e-4)
    assert rest.numbers[0]["step"] == 3


def test_without_validation_the_last_checkpoint_counts(split: Path, home: Path, tmp_path: Path) -> None:
    """There is one at the end, and no evaluation."""
    recipe = Recipe.model_validate(SMALL.model_dump() | ONCE | {"max_steps": 2})
    job = rows(split, home, tmp_path, recipe)
    shutil.rmtree(job.rows / "validation")
    told = Told(tmp_path)
    fit(job, report=told, scratch=tmp_path / "scratch")
    assert told.of("eval_loss") == []
    assert told.numbers[-2]["step"] == 2
    assert len(told.checkpoints) == 1


def test_training_stops_when_nothing_gets_better(split: Path, home: Path, tmp_path: Path) -> None:
    """A rate that destroys the model: `patience` evaluations after the best one it ends."""
    wild = {"quantise": False, "learning_rate": 0.5, "patience": 1, "evaluate_steps": 1, "max_steps": 12, "window": 32}
    told = Told(tmp_path)
    recipe = Recipe.model_validate(SMALL.model_dump() | wild | {"max_grad_norm": 100.0, "warmup": 0.0})
    fit(rows(split, home, tmp_path, recipe), report=told, scratch=tmp_path / "scratch")
    losses = told.of("eval_loss")
    assert len(losses) < 12
    assert losses[-1] > min(losses)


def test_conversations_in_one_row_do_not_see_each_other(home: Path) -> None:
    """Packed, each has the logits that it has alone."""
    folder = base.find("demo", home).folder
    kinds = {"implementation": attention.install(), "own": "eager"}
    packed, alone = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kind) for kind in kinds.values()
    )
    tokens = torch.randint(3, 6000, (1, 60), generator=torch.Generator().manual_seed(0))
    places = torch.cat([torch.arange(20), torch.arange(40)])[None]
    borders = torch.tensor([0, 20, 60], dtype=torch.int32)
    with torch.no_grad():
        together = packed(tokens, position_ids=places, cu_seq_lens_q=borders, cu_seq_lens_k=borders).logits
        apart = torch.cat([alone(tokens[:, :20]).logits, alone(tokens[:, 20:]).logits], dim=1)
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-4)


def killed_at_its_first_checkpoint(home: Path, split: Path, recipe: Recipe, address: str) -> None:
    """Run the stage's command on that Ray, and kill it."""
    changes = [f"--set={name}={value}" for name, value in recipe.model_dump(mode="json", exclude_defaults=True).items()]
    command = [sys.executable, "-m", "train.tune", f"--input=data={split}", "--params=/dev/null", *changes]
    environment = {**os.environ, "MINDFU_HOME": str(home), "RAY_ADDRESS": address}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        while not list(home.glob("runs/tune-*/.ray/run/checkpoint_manager_snapshot.json")):  # Ray knows one then
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]
    while workers():
        time.sleep(0.05)


def workers() -> list[psutil.Process]:
    """Of Ray Train."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_a_worker(home: Path, behind: int) -> None:
    """Once there are more numbers than before."""
    [history] = home.glob("runs/tune-*/history.jsonl")
    while len(history.read_text().splitlines()) <= behind:
        time.sleep(0.05)
    for worker in workers():
        worker.kill()


@contextlib.contextmanager
def every_cpu_reserved() -> Iterator[None]:
    """As a small machine's are by what serves: training runs beside that."""
    import ray

    @ray.remote
    class Serving:
        def runs(self) -> None: ...

    serving = Serving.options(num_cpus=ray.cluster_resources()["CPU"]).remote()  # type: ignore[attr-defined]
    ray.get(serving.runs.remote())
    assert not ray.available_resources().get("CPU")
    yield


@pytest.mark.training
def test_the_stage_on_ray_survives_a_killed_run_and_a_killed_worker(split: Path, home: Path) -> None:
    """The same command goes on from the last checkpoint; a dead worker is started again; an adapter comes out.

    All of that beside an application that has reserved every CPU of the machine.
    """
    recipe = Recipe.model_validate(SMALL.model_dump() | ONCE)
    with cluster.connected(home) as address, every_cpu_reserved():
        killed_at_its_first_checkpoint(home, split, recipe, address)
        [history] = home.glob("runs/tune-*/history.jsonl")
        before = len(history.read_text().splitlines())
        killer = threading.Thread(target=kill_a_worker, args=(home, before), daemon=True)
        killer.start()
        folder = stages.run(tune.STAGE, inputs={"data": split}, parameters=recipe, home=home)
    killer.join()
    told = stages.manifest(folder)
    assert set(told.outputs) == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "history.jsonl"}
    assert told.facts["base"] == "demo"
    assert told.facts["steps"] == told.facts["max_steps"] == 12
    assert told.counts["train_sequences"] == 12
    numbers = [json.loads(text) for text in history.read_text().splitlines()]
    assert numbers[before]["step"] > 4  # the first checkpoint's
    assert told.facts["validation_loss"] == pytest.approx(
        min(one["eval_loss"] for one in numbers if "eval_loss" in one)
    )
    client = tracking.client(home)
    for metric in ("loss", "learning_rate", "tokens_per_s", "memory_bytes"):  # every log_steps, across both deaths
        steps = {point.step for point in client.get_metric_history(told.facts["mlflow_run"], metric)}
        assert set(range(2, 13, 2)) <= steps
    again = time.process_time()
    assert stages.run(tune.STAGE, inputs={"data": split}, parameters=recipe, home=home) == folder
    assert time.process_time() - again < 2


@pytest.mark.training
def test_two_workers_learn_what_one_does(split: Path, home: Path, tmp_path: Path) -> None:
    """Each on half of a step's rows, gradients summed by gloo: the losses are those of one on all of them."""
    exact = {"quantise": False, "precision": "fp32", "window": 32, "max_steps": 3, "evaluate_steps": 3, "log_steps": 1}
    alone, together = (
        Recipe.model_validate(SMALL.model_dump() | exact | share)
        for share in ({"batch": 2}, {"batch": 1, "workers": 2, "cpus": 0.5})
    )
    told = Told(tmp_path)
    fit(rows(split, home, tmp_path, alone), report=told, scratch=tmp_path / "scratch")
    folder = stages.run(tune.STAGE, inputs={"data": split}, parameters=together, home=home)
    numbers = [json.loads(text) for text in (folder / tune.HISTORY).read_text().splitlines()]
    for name in ("loss", "eval_loss", "tokens"):
        here, there = ({one["step"]: one[name] for one in both if name in one} for both in (told.numbers, numbers))
        assert there == pytest.approx(here, rel=1e-3)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_what_is_rehearsed_is_that_share_of_the_tokens(share: float, split: Path, home: Path, tmp_path: Path) -> None:
    """Beside all that is learnt, the same lines each time, and none in the validation. Another file is another run."""
    known = tmp_path / "known.jsonl"
    said = [[{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Hello."}] for n in range(60)]
    known.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
    recipe = SMALL.model_copy(update={"rehearse": str(known), "rehearsed": share})
    given = tune.given(recipe, home)
    work = Work({"data": split}, recipe, tmp_path, home, given)
    made = [tune.tokenise(work, base.find("demo", home), tmp_path / f"rows-{turn}")[0] for turn in "ab"]
    plain = Work({"data": split}, SMALL, tmp_path, home, given)
    alone, _ = tune.tokenise(plain, base.find("demo", home), tmp_path / "rows-c")
    assert made[0] == made[1]
    assert made[0]["train_sequences"] == alone["train_sequences"] + made[0]["rehearsed_sequences"]
    assert made[0]["validation_tokens"] == alone["validation_tokens"]
    assert made[0]["rehearsed_tokens"] / made[0]["train_tokens"] == pytest.approx(share, abs=0.03)
    known.write_text(json.dumps({"messages": said[0]}) + "\n")
    assert tune.given(recipe, home) != given


@pytest.mark.parametrize(
    ("files", "recipe", "error", "message"),
    [
        ({}, {}, InvalidRequest, "it is no split"),
        ({"train.jsonl": ""}, {}, NothingToLearn, "Found 0 conversations with an answer to learn, needed 2"),
        ({}, {"base": "/nowhere"}, Misconfigured, "there is no /nowhere"),
        ({}, {"accelerator": "unsloth", "packing": False}, Misconfigured, "unsloth is not installed"),
        ({}, {"rehearse": "/nowhere.jsonl"}, Misconfigured, "there is no file /nowhere.jsonl"),
        ({"preferences-train.jsonl": ""}, {"method": "dpo"}, NothingToLearn, "Found 0 preferences"),
    ],
)
def test_what_cannot_succeed_fails_at_once(
    files: dict[str, str], recipe: dict[str, object], error: type[MindFuError], message: str, tmp_path: Path
) -> None:
    """Before a model is loaded or Ray started."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    parameters = Recipe.model_validate(recipe)

    def fails() -> None:
        with pytest.raises(error, match=message):
            stages.run(tune.STAGE, inputs={"data": tmp_path}, parameters=parameters, home=tmp_path / "h")

    assert work_s(fails, tries=1) < 1


def test_answers_of_one_kind_are_no_preference(tmp_path: Path) -> None:
    """The chosen answer is the rejected one."""
    said = {"role": "assistant", "content": "Yes."}
    told = json.dumps({"prompt": [{"role": "user", "content": "?"}], "chosen": said, "rejected": said})
    (tmp_path / "preferences-train.jsonl").write_text(f"{told}\n{told}\n")
    with pytest.raises(NothingToLearn, match="preferences in which the two answers differ"):
        tune.check({"data": tmp_path}, Recipe(method="dpo"))
