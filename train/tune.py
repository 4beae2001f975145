"""Stage `tune`: train an adapter on the base model, by QLoRA, from a split's conversations or preferences.

    python -m train.tune --input data=.mindfu/datasets/split-0f3a… --set epochs=1

Training runs on Ray Train: workers that die are started again from the last checkpoint, and so is a run that was killed
altogether, by the same command. Of the checkpoints the one with the lowest validation loss becomes the adapter. What
this does not do: judge whether the adapter is any better (train/evaluate.py), or serve it.
"""

import hashlib
import importlib.util
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InvalidRequest, Misconfigured, NothingToLearn
from app.llama.styles import name_of, template_of
from app.settings import home
from train import base, lines, stages
from train.recipe import STYLE_SETTING, Recipe
from train.stages import Outcome, Stage, Work

if TYPE_CHECKING:
    from train.fitting import Job
    from train.lessons import Lesson, Teacher

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
HISTORY = "history.jsonl"
REHEARSED = 0.25  # share of the tokens, where the recipe has none


def check(inputs: Mapping[str, Path], recipe: Recipe) -> None:
    """Raises within a second where there is no base, nothing to learn from, or only one kind of it."""
    base.present(recipe.base)
    template_of(recipe.chat_template, STYLE_SETTING)
    if recipe.accelerator is not None and importlib.util.find_spec(recipe.accelerator) is None:
        remedy = f"pip install {recipe.accelerator}, which needs an NVIDIA GPU, or leave tune.accelerator out."
        raise Misconfigured("tune.accelerator", f"{recipe.accelerator} is not installed", remedy)
    if recipe.rehearse is not None and not Path(recipe.rehearse).is_file():
        remedy = "Name a file of lines of messages, as training data is, or leave tune.rehearse out."
        raise Misconfigured("tune.rehearse", f"there is no file {recipe.rehearse}", remedy)
    data = inputs["data"]
    if recipe.method == "dpo":
        _check_preferences(data / "preferences-train.jsonl", recipe)
        return
    if not (data / "train.jsonl").exists():
        raise InvalidRequest(f"{data} has no train.jsonl: it is no split. Run train.split first.", "data")
    told = [line for line in lines.read(data / "train.jsonl") if any(line.weights)]
    if len(told) < recipe.min_conversations:
        what, remedy = "conversations with an answer to learn", "Correct answers, rate some up, or convert other data."
        raise NothingToLearn(what, len(told), recipe.min_conversations, remedy)


def make(work: Work[Recipe]) -> Outcome:
    """Tokenise, train, keep the best checkpoint's adapter."""
    recipe, rows = work.parameters, work.folder / ".rows"
    found, template = base.find(recipe.base, work.home), template_of(recipe.chat_template, STYLE_SETTING)
    work.progress(0, None, "tokenising")
    shutil.rmtree(rows, ignore_errors=True)
    counts, dropped = tokenise(work, found, rows, template)
    from train.fitting import Job

    job = Job(base=found.folder, content=found.content, rows=rows, adapter=_previous(work, template), recipe=recipe)
    best = _train(work, job)
    shutil.rmtree(rows)
    facts = {
        "base": recipe.base,
        "base_content": found.content,
        "chat_template": template,
        "method": recipe.method,
        "kind": "adapter" if recipe.adapter else "model",
        **best,
    }
    return Outcome(counts, dropped, facts)


def given(recipe: Recipe, home: Path) -> Mapping[str, str]:
    """The contents of the base, the chat template and what is rehearsed: a name may come to mean another file."""
    told = {"base": base.find(recipe.base, home).content}
    if (template := template_of(recipe.chat_template, STYLE_SETTING)) is not None:
        told["chat_template"] = hashlib.sha256(template.encode()).hexdigest()
    if recipe.rehearse is not None:
        told["rehearse"] = stages.content(Path(recipe.rehearse))
    return told


def _check_preferences(path: Path, recipe: Recipe) -> None:
    pairs = list(lines.read_preferences(path))
    if len(pairs) < recipe.min_conversations:
        what = "preferences (a corrected answer, or one rated up beside one rated down)"
        raise NothingToLearn(what, len(pairs), recipe.min_conversations, "Correct or rate answers, or use method: sft.")
    if all(pair.chosen == pair.rejected for pair in pairs):
        what, remedy = "preferences in which the two answers differ", "One class of answers teaches no preference."
        raise NothingToLearn(what, 0, recipe.min_conversations, remedy)


def _previous(work: Work[Recipe], template: str | None) -> Path | None:
    """The adapter to go on from, which must be one for this base, taught by this chat template."""
    if "adapter" not in work.inputs:
        return None
    folder, told = work.inputs["adapter"], stages.manifest(work.inputs["adapter"])
    if told.facts.get("base_content") != work.given["base"]:
        message = f"{folder} was tuned on {told.facts.get('base')}, which is not the base here, {work.parameters.base}."
        raise InvalidRequest(message, "adapter")
    taught_by = told.facts.get("chat_template")
    if taught_by != template:
        names = [name_of(None if one is None else str(one)) for one in (taught_by, template)]
        message = f"{folder} was taught by the chat template '{names[0]}', which is not the one here, '{names[1]}'."
        raise InvalidRequest(message, "adapter")
    return folder / "adapter"


def tokenise(
    work: Work[Recipe], found: base.Base, rows: Path, template: str | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the rows that workers read. template: by which chats are shown; None: the base's own.

    Returns counts and what was dropped.
    """
    import datasets

    from train.lessons import Teacher

    teacher = Teacher(found.folder, template)
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    make_rows = _pairs if work.parameters.method == "dpo" else _packed
    for part in ("train", "validation"):
        made = make_rows(teacher, work, part, counts, dropped)
        if made:
            datasets.Dataset.from_list(made).save_to_disk(str(rows / part))
        elif part == "train":
            what = f"conversations that fit into {work.parameters.window} tokens"
            raise NothingToLearn(what, 0, 1, "Raise tune.window.")
    return counts, dropped


def _packed(
    teacher: "Teacher", work: Work[Recipe], part: str, counts: dict[str, int], dropped: dict[str, int]
) -> list[Any]:
    from train import packing

    recipe = work.parameters
    lessons = list(_lessons(teacher, work.inputs["data"] / f"{part}.jsonl", recipe.window, dropped))
    if part == "train" and recipe.rehearse is not None:
        known = list(_lessons(teacher, Path(recipe.rehearse), recipe.window, dropped))
        rehearsed = _share(known, lessons, recipe.rehearsed or REHEARSED, recipe.seed)
        counts |= {"rehearsed_sequences": len(rehearsed), "rehearsed_tokens": _tokens(rehearsed)}
        lessons += rehearsed
    made = packing.packed(lessons, recipe.window) if recipe.packing else packing.single(lessons)
    counts |= {
        f"{part}_sequences": len(lessons),
        f"{part}_rows": len(made),
        f"{part}_tokens": _tokens(lessons),
        f"{part}_learnt_tokens": sum(sum(lesson.learnt) for lesson in lessons),
    }
    return made


def _lessons(teacher: "Teacher", path: Path, window: int, dropped: dict[str, int]) -> Iterator["Lesson"]:
    for line in lines.read(path):
        with _counted(dropped, "the template cannot show it"):
            for lesson in teacher.lessons(line):
                if (fitting := lesson.within(window)) is None:
                    dropped["longer than the window"] = dropped.get("longer than the window", 0) + 1
                else:
                    yield fitting


def _share(known: list["Lesson"], learnt: list["Lesson"], share: float, seed: int) -> list["Lesson"]:
    """As many of the known ones, in any order, as make that share of all tokens; all of them where they are too few."""
    room = _tokens(learnt) * share / (1 - share)
    drawn = random.Random(seed).sample(known, len(known))  # noqa: S311 - the same each time
    ends = accumulate(len(lesson.tokens) for lesson in drawn)
    return [lesson for lesson, end in zip(drawn, ends, strict=True) if end <= room]


def _tokens(lessons: Iterable["Lesson"]) -> int:
    return sum(len(lesson.tokens) for lesson in lessons)


def _pairs(
    teacher: "Teacher", work: Work[Recipe], part: str, counts: dict[str, int], dropped: dict[str, int]
) -> list[Any]:
    made = []
    for pair in lines.read_preferences(work.inputs["data"] / f"preferences-{part}.jsonl"):
        with _counted(dropped, "the template cannot show it"):
            prompt, chosen, rejected = teacher.pair(pair)
            if len(prompt) + max(len(chosen), len(rejected)) > work.parameters.window:
                dropped["longer than the window"] = dropped.get("longer than the window", 0) + 1
            else:
                made.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    counts[f"{part}_pairs"] = len(made)
    return made


@contextmanager
def _counted(dropped: dict[str, int], reason: str) -> Iterator[None]:
    try:
        yield
    except InvalidRequest:
        dropped[reason] = dropped.get(reason, 0) + 1


def _train(work: Work[Recipe], job: Any) -> dict[str, Any]:
    """Train on Ray, tell MLflow, and put the best checkpoint's adapter in its place. Returns facts of it."""
    from train import cluster, tracking

    recipe = work.parameters
    told = {"code": work.folder.name, **{f"recipe.{k}": v for k, v in recipe.model_dump(mode="json").items()}}
    run_id = _run_id(work, told)
    try:
        with cluster.connected(work.home):
            best = _on_ray(work, job, run_id)
    except BaseException:
        tracking.end(work.home, run_id, failed=True)
        raise
    tracking.end(work.home, run_id, failed=False)
    shutil.rmtree(work.folder / ".ray")
    return best | {"mlflow_run": run_id}


def _run_id(work: Work[Recipe], told: Mapping[str, object]) -> str:
    """MLflow's run: one, however often it is interrupted."""
    from train import tracking

    kept = work.folder / ".mlflow"
    if not kept.exists():
        stages.write(kept, tracking.begin(work.home, work.parameters.experiment, work.folder.name, told))
    return kept.read_text()


def _on_ray(work: Work[Recipe], job: Any, run_id: str) -> dict[str, Any]:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer

    from train import cluster

    recipe, folder, home = work.parameters, work.folder, work.home
    gpu = gpus_wanted(recipe, ray.cluster_resources())
    cpus = recipe.cpus if gpu or recipe.resources else cluster.share(recipe.cpus, recipe.workers)

    class Live(UserCallback):  # type: ignore[misc]  # no types
        """Runs in Ray Train's controller: keeps numbers where people look while it trains."""

        def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object) -> None:
            del run_context
            if checkpoint is None:  # else they were told already
                tell(folder, home, run_id, metrics[0])

    trainer = TorchTrainer(
        on_worker,
        train_loop_config=job.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=recipe.workers,
            use_gpu=gpu,
            resources_per_worker=({"CPU": cpus} if cpus else {"memory": 1})
            | ({"GPU": 1} if gpu else {})
            | recipe.resources,
        ),
        run_config=RunConfig(
            name="run",
            storage_path=str(folder / ".ray"),
            failure_config=FailureConfig(max_failures=recipe.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2,
                **(
                    {"checkpoint_score_attribute": "eval_loss", "checkpoint_score_order": "min"}
                    if job.validated
                    else {}
                ),
            ),
            callbacks=[Live()],
        ),
    )
    result = trainer.fit()
    best = result.get_best_checkpoint("eval_loss", "min") if job.validated else result.checkpoint
    numbers = next(numbers for checkpoint, numbers in result.best_checkpoints if checkpoint == best)
    with best.as_directory() as kept:
        _keep(Path(kept), folder, recipe)
    return {
        "steps": int(numbers["step"]),
        "max_steps": int(numbers["max_steps"]),
        "validation_loss": numbers.get("eval_loss"),
        "memory_bytes": int(numbers["memory_bytes"]),
    }


def gpus_wanted(recipe: Recipe, there: Mapping[str, float]) -> bool:
    """Whether workers ask for a GPU each. there: what the cluster's nodes have; one that is still to come has none yet,
    so that what names a node's own resource asks for its GPU.
    """
    if recipe.gpu is not None:
        return recipe.gpu
    return bool(recipe.resources) or there.get("GPU", 0) >= recipe.workers


def on_worker(config: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    from ray import train
    from ray.train import Checkpoint

    if config["recipe"]["accelerator"] == "unsloth":
        import unsloth  # type: ignore[import-not-found,unused-ignore]  # noqa: F401  # before what it patches
    from train.fitting import Job, fit

    job = of_this_node(Job.model_validate(config), home())
    first = train.get_context().get_world_rank() == 0

    def report(numbers: dict[str, float], folder: Path | None) -> None:
        kept = Checkpoint.from_directory(folder) if folder is not None and first else None
        train.report(numbers, checkpoint=kept)

    checkpoint = train.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoint is None:
            fit(job, report=report, scratch=Path(scratch))
            return
        with checkpoint.as_directory() as resume:
            fit(job, report=report, scratch=Path(scratch), resume=Path(resume))


def of_this_node(job: "Job", folder: Path) -> "Job":
    """With the base's folder on this machine: datasets and runs are the same on all nodes, models are each node's own.

    Raises Misconfigured where there is none, or another one.
    """
    if job.base.is_dir():
        return job
    found = base.find(job.recipe.base, folder)
    if found.content != job.content:
        problem = f"{job.recipe.base} is another model on this node than on the head"
        raise Misconfigured(base.SETTING, problem, "Give all nodes the same file, or the same revision.")
    return job.model_copy(update={"base": found.folder})


def tell(folder: Path, home: Path, run_id: str, numbers: Mapping[str, float]) -> None:
    """Add the numbers of a step to history.jsonl, progress.json and MLflow."""
    from train import tracking

    step, of = int(numbers["step"]), int(numbers["max_steps"])
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(numbers)) + "\n")
    text = ", ".join(f"{name} {numbers[name]:.4g}" for name in ("loss", "eval_loss", "tokens_per_s") if name in numbers)
    state = {"done": step, "total": of, "text": text}
    stages.write(folder / stages.PROGRESS, json.dumps(state))
    tracking.log(home, run_id, numbers, step=step, at_ms=time.time_ns() // 10**6)


def _keep(checkpoint: Path, folder: Path, recipe: Recipe) -> None:
    """The adapter out of a checkpoint, or the model where all weights were trained."""
    if recipe.adapter is None:
        _copy(checkpoint, folder / "model", (file.name for file in checkpoint.iterdir() if _of_model(file.name)))
        return
    _copy(checkpoint, folder / "adapter", ADAPTER)
    config = folder / "adapter" / ADAPTER[0]
    told = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": recipe.base}
    config.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _of_model(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json", ".jinja")) or name in {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


STAGE = Stage(
    name="tune",
    does="Train an adapter on the base model.",
    place="runs",
    inputs=("data", "adapter?"),
    parameters=Recipe,
    make=make,
    check=check,
    given=given,
)

if __name__ == "__main__":
    stages.main(STAGE)
