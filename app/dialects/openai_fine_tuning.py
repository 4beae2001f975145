"""OpenAI's JSON of fine-tuning jobs, over our runs.

A training file is an uploaded one, or `conversations`: those that were recorded and rated or corrected. A validation
file holds conversations whose answers are known to be right: the gates judge by it (evaluate's `trusted`); what stops
training is held out of the training file.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from app import params
from app.dialects.events import Json
from app.dialects.openai_files import Metadata
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Strict
from app.registry import split_name
from app.runs import Event, Order, Parameters, Run, StageRun

CONVERSATIONS = "conversations"
Auto = Literal["auto"]
Epochs = Auto | Annotated[int, Field(ge=1, le=50)]
Batch = Auto | Annotated[int, Field(ge=1, le=256)]
Rate = Auto | Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Beta = Auto | Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)]
VERSION_CHARS = 63  # of an adapter's version
VALIDATING = frozenset({"export", "convert", "validate", "split"})
METRICS: Mapping[str, str] = {
    "step": "step",
    "loss": "train_loss",
    "mean_token_accuracy": "train_mean_token_accuracy",
    "eval_loss": "valid_loss",
    "eval_mean_token_accuracy": "valid_mean_token_accuracy",
}


class Hyperparameters(Strict):
    """auto: as params.yaml has it."""

    n_epochs: Epochs | None = None
    batch_size: Batch | None = None
    learning_rate_multiplier: Rate | None = None


class DpoHyperparameters(Hyperparameters):
    beta: Beta | None = None


class Supervised(Strict):
    hyperparameters: Hyperparameters | None = None


class Dpo(Strict):
    hyperparameters: DpoHyperparameters | None = None


class Method(Strict):
    """How to learn: from answers, or from preferences."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, JsonValue] | None = None


class NewJob(Strict):
    """POST /v1/fine_tuning/jobs."""

    model: str
    training_file: str = Field(min_length=1, max_length=128)
    validation_file: str | None = Field(None, min_length=1, max_length=128)
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=2147483647)
    integrations: list[JsonValue] | None = None
    metadata: Metadata | None = None

    def order(self, tenant: str, parameters: Parameters) -> Order:
        """What the run is to do. Raises UnsupportedOption, InvalidRequest."""
        if self.integrations:
            message = "'integrations' is not supported: runs are told to MLflow (mindfu mlflow). Leave it out."
            raise UnsupportedOption(message, "integrations")
        wanted = self._hyperparameters()
        own: dict[str, Any] = {"method": "dpo" if self.method and self.method.type == "dpo" else "sft"}
        if isinstance(wanted.n_epochs, int):
            own["epochs"] = wanted.n_epochs
        if isinstance(wanted.batch_size, int):
            together = 2 - wanted.batch_size % 2  # rows of one pass; the others are accumulated
            own |= {"batch": together, "accumulation": wanted.batch_size // together}
        if isinstance(wanted, DpoHyperparameters) and isinstance(wanted.beta, float | int):
            own["beta"] = wanted.beta
        if self.seed is not None:
            own["seed"] = self.seed
        rate = wanted.learning_rate_multiplier
        published = {} if self.suffix is None else {"version": version(self.suffix)}
        recorded = self.training_file == CONVERSATIONS
        return Order(
            conversations=recorded,
            files=() if recorded else (self.training_file,),
            trusted=self.validation_file,
            parameters=params.changed(parameters, {"tune": own, "publish": published, "export": {"tenants": [tenant]}}),
            rate_factor=float(rate) if isinstance(rate, float | int) else 1.0,
            model=self.model,
            metadata=dict(self.metadata or {}),
        )

    def _hyperparameters(self) -> Hyperparameters:
        """Those of the method, or the older ones beside it."""
        method = self.method
        if method is None:
            return self.hyperparameters or Hyperparameters()
        if method.type == "reinforcement" or method.reinforcement is not None:
            message = "'method.type' reinforcement is not supported: take supervised or dpo."
            raise UnsupportedOption(message, "method.type")
        if self.hyperparameters is not None:
            message = "'hyperparameters' and 'method' both say how to train: send them within 'method'."
            raise InvalidRequest(message, "hyperparameters")
        other = method.dpo if method.type == "supervised" else method.supervised
        if other is not None:
            message = f"'method' has the type {method.type} and the parameters of another one."
            raise InvalidRequest(message, "method")
        own = method.supervised or method.dpo
        return (own and own.hyperparameters) or Hyperparameters()


def version(suffix: str) -> str:
    """A version of an adapter that nobody has, which begins with the suffix."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", suffix).strip("-._")[: VERSION_CHARS - 9] or "job"
    return f"{plain}-{secrets.token_hex(4)}"


def job(run: Run) -> Json:
    """A job."""
    order, tune = run.order, run.order.parameters.get("tune", {})
    dpo = tune.get("method") == "dpo"
    told = _told(order, tune)
    shown = {name: value for name, value in told.items() if name != "beta"}
    kind = "dpo" if dpo else "supervised"
    return {
        "id": run.id,
        "object": "fine_tuning.job",
        "created_at": _unix(run.created_at),
        "error": run.error and {"code": run.error_code or "internal_error", "message": run.error, "param": None},
        "fine_tuned_model": model_of(run),
        "finished_at": run.finished_at and _unix(run.finished_at),
        "hyperparameters": shown,
        "method": {"type": kind, kind: {"hyperparameters": told}},
        "model": order.model or str(order.parameters.get("publish", {}).get("model", "")),
        "organization_id": run.tenant,
        "result_files": [],
        "status": status(run),
        "trained_tokens": run.result.get("trained_tokens"),
        "training_file": order.files[0] if order.files else order.dataset or CONVERSATIONS,
        "validation_file": order.trusted,
        "seed": tune.get("seed", 42),
        "estimated_finish": None,
        "integrations": [],
        "metadata": {name: str(value) for name, value in order.metadata.items()},
    }


def status(run: Run) -> str:
    """As OpenAI calls it."""
    stage = run.progress.stage.partition(".")[0] if run.progress else "export"
    return "validating_files" if run.state == "running" and stage in VALIDATING else run.state


def model_of(run: Run) -> str | None:
    """The name that requests may send, once there is one."""
    name = run.result.get("name")
    return ":".join(split_name(name)) if isinstance(name, str) else None


def event(told: Event) -> Json:
    """Something that happened."""
    data = told.data if told.kind == "message" else {METRICS[k]: v for k, v in told.data.items() if k in METRICS}
    return {
        "id": f"ftevent-{told.id}",
        "object": "fine_tuning.job.event",
        "created_at": _unix(told.at),
        "level": told.level,
        "message": told.text,
        "type": told.kind,
        "data": data,
    }


def event_number(cursor: str) -> int:
    """The event that a cursor names. Raises InvalidRequest."""
    number = cursor.removeprefix("ftevent-")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise InvalidRequest(f"'after' is no id of an event: '{cursor[:80]}'.", "after")
    return int(number)


def checkpoints(run: Run, stages: Sequence[StageRun], numbers: Sequence[Event]) -> list[Json]:
    """The one that became the adapter: the others were only kept to go on from. numbers: of training, latest first."""
    name = model_of(run)
    tuned = next((stage for stage in stages if stage.name == "tune" and stage.facts), None)
    if name is None or tuned is None or tuned.facts is None or tuned.finished_at is None:
        return []
    step = int(str(tuned.facts.get("steps", 0)))
    metrics: Json = {"step": step}
    for one in numbers:
        if one.data.get("step") == step:
            metrics = {METRICS[k]: v for k, v in one.data.items() if k in METRICS} | metrics
    loss = tuned.facts.get("validation_loss")
    return [{
        "id": f"ftckpt-{tuned.key}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": _unix(tuned.finished_at),
        "fine_tuned_model_checkpoint": name,
        "fine_tuning_job_id": run.id,
        "metrics": metrics | ({} if loss is None else {"full_valid_loss": loss}),
        "step_number": step,
    }]  # fmt: skip


def page(items: Sequence[Json], *, limit: int, ends: bool = False) -> Json:
    """A page of a list, of which one more was asked for. ends: with the ids of its first and last."""
    shown = list(items[:limit])
    told: Json = {"object": "list", "data": shown, "has_more": len(items) > limit}
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return told | ({"first_id": first, "last_id": last} if ends else {})


def _told(order: Order, tune: Mapping[str, JsonValue]) -> Json:
    """The hyperparameters of a run, as far as they are known before it begins."""
    epochs, batch = tune.get("epochs"), tune.get("batch")
    known: Json = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    if isinstance(epochs, int | float) and float(epochs).is_integer() and 1 <= epochs <= 50:
        known["n_epochs"] = int(epochs)
    if isinstance(batch, int) and isinstance(tune.get("accumulation"), int):
        known["batch_size"] = min(256, batch * int(str(tune["accumulation"])))
    if order.rate_factor != 1:
        known["learning_rate_multiplier"] = order.rate_factor
    if tune.get("method") == "dpo":
        known["beta"] = tune.get("beta", "auto")
    return known


def _unix(time: Any) -> int:
    return int(time.timestamp())
