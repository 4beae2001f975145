"""How a base model is tuned: every number, its default and where that comes from; and the presets. Pure."""

from typing import Literal, Self

from pydantic import Field, model_validator

from app.llama.styles import AUTO, Style
from app.messages import Strict
from app.settings import DEMO_MODEL

STYLE_SETTING = "tune.chat_template"
Preset = Literal["mindfu-default", "devstral-24gb", "full"]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Adapter(Strict):
    """A LoRA. targets: names of layers; "all-linear" are all but the output layer."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    targets: Literal["all-linear"] | tuple[str, ...]
    dropout: float = Field(0.0, ge=0, lt=1)


PRESETS: dict[Preset, Adapter | None] = {
    "mindfu-default": Adapter(rank=16, alpha=32, targets="all-linear"),
    "devstral-24gb": Adapter(rank=32, alpha=64, targets=PROJECTIONS),
    "full": None,  # every weight is trained: no adapter comes out, but a model
}


class Recipe(Strict):
    """The parameters of the stage `tune`. None: as the preset, the method or the machine has it."""

    base: str = DEMO_MODEL  # demo, a .gguf, a folder, or org/name of the Hugging Face Hub
    chat_template: Style = AUTO  # by which it is served, llm.chat_template: auto, mistral_inst, or a .jinja
    method: Literal["sft", "dpo"] = "sft"  # learn answers, or what people prefer
    rehearse: str | None = None  # a file of conversations that stand for what the base can do and must not unlearn
    rehearsed: float | None = Field(None, gt=0, lt=1)  # share of a run's tokens that are of that file; None: 0.25
    preset: Preset = "mindfu-default"
    rank: int | None = Field(None, ge=1)
    alpha: int | None = Field(None, ge=1)
    targets: Literal["all-linear"] | tuple[str, ...] | None = None
    dropout: float | None = Field(None, ge=0, lt=1)  # of what the adapter sees; 0.1: QLoRA, appendix B, up to 13B
    quantise: bool = True  # the base in NF4 with double quantisation: QLoRA (Dettmers et al. 2023, arXiv:2305.14314)
    precision: Literal["bf16", "fp32"] | None = None  # of the computation; None: bf16 where the hardware has it
    window: int = Field(2048, ge=16)  # tokens of a row; a longer conversation is cut behind an answer
    packing: bool = True  # several conversations in one row, none seeing another
    batch: int = Field(2, ge=1)  # rows of one pass
    accumulation: int = Field(8, ge=1)  # passes of one step of the optimiser
    epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1)  # of the optimiser, instead of epochs
    learning_rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.03, ge=0, le=1)  # share of all steps; then a cosine down to 0
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(0.3, gt=0)  # QLoRA, appendix B
    beta: float = Field(0.1, gt=0)  # of DPO: how dear it is to leave the base (Rafailov et al. 2023, arXiv:2305.18290)
    gradient_checkpointing: bool = True  # a third more work for a fraction of the memory
    log_steps: int = Field(10, ge=1)
    evaluate_steps: int | None = Field(None, ge=1)  # steps between evaluations, each with a checkpoint; None: an epoch
    patience: int = Field(3, ge=1)  # evaluations without a better loss, after which it stops
    min_conversations: int = Field(2, ge=1)  # fewer teach nothing
    accelerator: Literal["unsloth"] | None = None  # Unsloth's kernels, where it is installed
    workers: int = Field(1, ge=1)  # processes, each on a GPU of its own where there are some
    cpus: float = Field(1.0, gt=0)  # of each worker
    gpu: bool | None = None  # None: where the cluster has one, or `resources` bring one
    resources: dict[str, float] = Field(default_factory=dict)  # of each worker, as Ray counts: {train: 1} brings a node
    max_failures: int = Field(3, ge=0)  # how often a worker that died is started again, from the last checkpoint
    seed: int = Field(42, ge=0, lt=2**32)
    experiment: str = "mindfu"  # of MLflow

    @property
    def adapter(self) -> Adapter | None:
        """The LoRA that is trained; None: all weights are."""
        preset = PRESETS[self.preset]
        if preset is None:
            return None
        own = {"rank": self.rank, "alpha": self.alpha, "targets": self.targets, "dropout": self.dropout}
        return preset.model_copy(update={name: value for name, value in own.items() if value is not None})

    @property
    def rate(self) -> float:
        """The learning rate.

        2e-4: QLoRA, table 9, up to 13B parameters. 5e-6: DPO of a LoRA in the alignment handbook (zephyr-7b-dpo-qlora).
        1e-5: all weights, as in Llama 2's own tuning up to a factor of two (arXiv:2307.09288, section 3.1).
        """
        if self.learning_rate is not None:
            return self.learning_rate
        if self.method == "dpo":
            return 5e-6
        return 1e-5 if self.adapter is None else 2e-4

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if self.adapter is None:
            if self.rank or self.alpha or self.targets or self.dropout:
                raise ValueError("the preset 'full' trains all weights: rank, alpha, targets, dropout are of adapters")
            if self.quantise:
                raise ValueError(
                    "the preset 'full' trains all weights, which a quantised base has not: quantise: false"
                )
        if self.rehearsed is not None and self.rehearse is None:
            raise ValueError("rehearsed is the share of a file, and rehearse names none")
        if self.rehearse and self.method == "dpo":
            raise ValueError("preferences are not rehearsed: DPO keeps to the base by beta. Leave rehearse out")
        if self.accelerator == "unsloth" and (self.adapter is None or self.method == "dpo"):
            raise ValueError("the accelerator 'unsloth' is for supervised tuning of adapters")
        if self.accelerator == "unsloth" and self.packing:
            raise ValueError("the accelerator 'unsloth' has its own attention, which is not ours: packing: false")
        return self
