"""One worker's part of tuning: a base, an adapter on it, rows to learn from, and TRL's trainer. No Ray in here.

Every `log_steps` and at every evaluation numbers are reported, at every evaluation a checkpoint too. With several
workers each runs this, on its share of the rows; torch.distributed is set up before, and TRL sums losses over all.
"""

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import torch
import transformers
import trl
from transformers import TrainerCallback

from app.messages import Strict
from train import attention
from train.recipe import PROJECTIONS, Adapter, Recipe

Report = Callable[[dict[str, float], Path | None], None]
"""Takes numbers, and the folder of a checkpoint if there is one. Every worker calls it at the same steps."""

TOLD = (
    "loss", "eval_loss", "learning_rate", "grad_norm", "epoch", "mean_token_accuracy", "eval_mean_token_accuracy",
    "rewards/accuracies", "rewards/margins", "eval_rewards/accuracies", "eval_rewards/margins",
)  # fmt: skip
"""Of what the trainer logs, what is reported."""


class Job(Strict):
    """What a worker has to know. All workers see the rows; of the base each node may have a copy of its own."""

    base: Path  # as transformers reads it
    content: str  # a hash of the base
    rows: Path  # two data sets of packing.Row or lessons.Pair: train, and validation if there is any
    adapter: Path | None = None  # to go on from
    recipe: Recipe

    @property
    def validated(self) -> bool:
        return (self.rows / "validation").exists()


def fit(job: Job, *, report: Report, scratch: Path, resume: Path | None = None) -> None:
    """Train. scratch: for the trainer's own checkpoints; resume: one of them, to go on from."""
    recipe, gpu = job.recipe, torch.cuda.is_available()
    bf16 = _bf16(recipe, gpu=gpu)
    model, tokenizer = _model(job, bf16=bf16, gpu=gpu)
    rows = datasets.load_from_disk(str(job.rows / "train"))
    validation = datasets.load_from_disk(str(job.rows / "validation")) if job.validated else None
    options = _options(job, scratch, rows=len(rows), bf16=bf16, gpu=gpu)
    kinds: dict[str, tuple[type[Any], type[Any]]] = {
        "sft": (trl.SFTConfig, trl.SFTTrainer),
        "dpo": (trl.DPOConfig, TokenisedDPOTrainer),
    }
    config, trainer = kinds[recipe.method]
    fitter = trainer(
        model=model,
        args=config(**options),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[Reporter(report, patience=recipe.patience)],
    )
    fitter.remove_callback(transformers.PrinterCallback)
    for weight in fitter.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # TRL makes adapters bf16, in which small steps get lost
    fitter.train(resume_from_checkpoint=None if resume is None else str(resume))


class TokenisedDPOTrainer(trl.DPOTrainer):  # type: ignore[misc]  # no types
    """TRL's, for rows that are tokens already (lessons.Pair): no template is applied again."""

    def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
        return dataset


class Reporter(TrainerCallback):  # type: ignore[misc]  # no types
    """Tells what the trainer logs, with speed and memory, and its checkpoints; stops it when nothing gets better."""

    def __init__(self, report: Report, *, patience: int) -> None:
        self._report, self._patience = report, patience
        self._began, self._seconds, self._tokens = 0.0, 0.0, 0.0
        self._latest: dict[str, float] = {}

    def on_step_begin(self, *_: object, **__: object) -> None:
        self._began = time.monotonic()

    def on_substep_end(self, *_: object, **__: object) -> None:
        now = time.monotonic()
        self._seconds, self._began = self._seconds + now - self._began, now

    def on_step_end(self, args: Any, state: Any, control: Any, **__: object) -> None:
        self._seconds += time.monotonic() - self._began
        if state.global_step >= state.max_steps:
            control.should_log = control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_log(self, _: object, state: Any, __: object, logs: dict[str, Any], **___: object) -> None:
        numbers = {name: float(logs[name]) for name in TOLD if name in logs}
        if not numbers:
            return
        tokens = logs.get("num_tokens")
        if tokens is not None and "loss" in numbers and self._seconds:
            numbers |= {"tokens": tokens, "tokens_per_s": (tokens - self._tokens) / self._seconds}
            self._tokens, self._seconds = tokens, 0.0
        numbers |= {
            "step": float(state.global_step),
            "max_steps": float(state.max_steps),
            "memory_bytes": memory_bytes(),
            "time": time.time(),
        }
        self._latest |= numbers
        self._report(numbers, None)

    def on_evaluate(self, _: object, state: Any, control: Any, **__: object) -> None:
        losses = [log["eval_loss"] for log in state.log_history if "eval_loss" in log]
        if losses and not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the validation loss is {losses[-1]} at step {state.global_step}")
        if len(losses) - 1 - losses.index(min(losses)) >= self._patience:
            control.should_training_stop = control.should_save = True

    def on_save(self, args: Any, state: Any, _: object, **__: object) -> None:
        self._report(dict(self._latest), Path(args.output_dir) / f"checkpoint-{state.global_step}")


def memory_bytes() -> float:
    """The most that this process ever held: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _bf16(recipe: Recipe, *, gpu: bool) -> bool:
    """Whether to compute in bf16. On CPUs only where they have instructions for it: else it is emulated, slowly."""
    if recipe.precision is not None:
        return recipe.precision == "bf16"
    if gpu:
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001


def _model(job: Job, *, bf16: bool, gpu: bool) -> tuple[Any, Any]:
    if job.recipe.accelerator == "unsloth":
        return _by_unsloth(job)
    recipe = job.recipe
    compute = torch.bfloat16 if bf16 else torch.float32
    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.base,
        quantization_config=quantised if recipe.quantise else None,
        dtype=compute if recipe.adapter else torch.float32,  # weights that are trained keep all their bits
        attn_implementation=attention.install() if recipe.method == "sft" and recipe.packing else "sdpa",
        device_map={"": torch.cuda.current_device()} if gpu else {"": "cpu"},
    )
    for module in model.modules():
        # At an evaluation on CPUs with AVX-512 for bf16, bitsandbytes packs 4-bit weights anew, in place, and fails
        # where a row is no multiple of its block of 64.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return _adapted(model, job), transformers.AutoTokenizer.from_pretrained(job.base)


def _adapted(model: Any, job: Job) -> Any:
    import peft

    adapter = job.recipe.adapter
    if adapter is None:
        return model
    if job.adapter is not None:
        return peft.PeftModel.from_pretrained(model, job.adapter, is_trainable=True)
    torch.manual_seed(job.recipe.seed)
    return peft.get_peft_model(model, lora(adapter))


def lora(adapter: Adapter) -> Any:
    """PEFT's configuration of an adapter."""
    import peft

    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    return peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=targets,
        lora_dropout=adapter.dropout,
        task_type="CAUSAL_LM",
    )


def _by_unsloth(job: Job) -> tuple[Any, Any]:
    """The same by Unsloth, which patches transformers when it is imported."""
    from unsloth import FastLanguageModel  # type: ignore[import-not-found,unused-ignore]

    recipe, adapter = job.recipe, cast("Adapter", job.recipe.adapter)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(job.adapter or job.base), max_seq_length=recipe.window, load_in_4bit=recipe.quantise
    )
    if job.adapter is None:
        targets = PROJECTIONS if adapter.targets == "all-linear" else adapter.targets
        model = FastLanguageModel.get_peft_model(
            model,
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules=list(targets),
            use_gradient_checkpointing="unsloth" if recipe.gradient_checkpointing else False,
            random_state=recipe.seed,
        )
    return model, tokenizer


def _options(job: Job, scratch: Path, *, rows: int, bf16: bool, gpu: bool) -> dict[str, Any]:
    """The arguments of TRL's configuration."""
    recipe = job.recipe
    workers = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    steps = recipe.max_steps or math.ceil(rows / (recipe.batch * recipe.accumulation * workers)) * recipe.epochs
    when = "steps" if recipe.evaluate_steps else "epoch"
    own: dict[str, dict[str, Any]] = {
        "sft": {"padding_free": recipe.packing, "dataset_kwargs": {"skip_prepare_dataset": True}},
        "dpo": {"beta": recipe.beta},
    }
    return own[recipe.method] | {
        "output_dir": str(scratch),
        "max_length": None,
        "per_device_train_batch_size": recipe.batch,
        "per_device_eval_batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "learning_rate": recipe.rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(recipe.warmup * steps),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "paged_adamw_8bit",
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": bf16,
        "use_cpu": not gpu,
        "logging_steps": recipe.log_steps,
        "eval_strategy": when if job.validated else "no",
        "eval_steps": recipe.evaluate_steps,
        "save_strategy": when,
        "save_steps": recipe.evaluate_steps or 500,
        "save_total_limit": 1,  # Ray Train keeps what is to be kept
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }
