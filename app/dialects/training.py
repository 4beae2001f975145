"""Our own JSON of training runs: POST /train/start and what is told of runs."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, JsonValue

from app import params
from app.dialects.events import Json
from app.errors import InvalidRequest
from app.llama.styles import AUTO
from app.messages import Strict
from app.runs import Event, Order, Parameters, Run, StageName, StageRun

Id = Annotated[str, Field(min_length=1, max_length=128)]


class StartRequest(Strict):
    """POST /train/start. Nothing named to learn from: the recorded conversations."""

    num_epochs: float | None = Field(None, gt=0, le=1000, allow_inf_nan=False)
    experiment_name: str | None = Field(None, min_length=1, max_length=200)
    conversations: bool | None = None  # learn from those that were recorded
    files: tuple[Id, ...] = Field((), max_length=100)  # uploaded ones, by their ids
    dataset: str | None = Field(None, min_length=1, max_length=200)  # of the Hugging Face Hub
    trusted: Id | None = None  # an uploaded file of conversations whose answers are right, to judge by
    model: str | None = None  # that is tuned; None: the main one
    parameters: dict[StageName, dict[str, JsonValue]] = Field(default_factory=dict)  # of stages, see params.yaml
    until: StageName = "publish"  # the last stage
    promote: bool = False  # let it answer, if its gates pass it

    def order(self, tenant: str, parameters: Parameters) -> Order:
        """What the run is to do. parameters: as they would be. Raises InvalidRequest for another chat template."""
        own: dict[str, Any] = {} if self.num_epochs is None else {"epochs": self.num_epochs}
        own |= {} if self.experiment_name is None else {"experiment": self.experiment_name}
        asked = params.changed(parameters, self.parameters)
        wanted, served = (told.get("tune", {}).get("chat_template", AUTO) for told in (asked, parameters))
        if wanted != served:
            message = (
                f"tune.chat_template is '{wanted}', and the model is served by '{served}': "
                "leave it out, or change llm.chat_template."
            )
            raise InvalidRequest(message, "parameters")
        return Order(
            conversations=not (self.files or self.dataset) if self.conversations is None else self.conversations,
            files=self.files,
            dataset=self.dataset,
            trusted=self.trusted,
            parameters=params.changed(asked, {"tune": own, "export": {"tenants": [tenant]}}),
            until=self.until,
            promote=self.promote,
            model=self.model,
        )


def run(told: Run, stages: Sequence[StageRun] | None = None) -> Json:
    """A run, with its stages where they are known."""
    made: Json = {"object": "train.run", **told.model_dump(mode="json", exclude={"order", "seen_at"})}
    made["order"] = told.order.model_dump(mode="json", exclude_defaults=True)
    return made if stages is None else made | {"stages": [stage.model_dump(mode="json") for stage in stages]}


def runs(page: Sequence[Run], *, limit: int) -> Json:
    """A page of runs, of which one more was asked for."""
    shown = page[:limit]
    return {
        "object": "list",
        "data": [run(one) for one in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(page) > limit,
    }


def events(page: Sequence[Event]) -> Json:
    """What happened, the oldest first."""
    return {"object": "list", "data": [event.model_dump(mode="json") for event in page]}
