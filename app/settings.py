"""Everything that `serve_config.yaml` may set under `args:`, and the secrets, which come from the environment only.

No other module reads `os.environ`. Each part is handed its own slice.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import Discriminator, Field, SecretStr, Tag, field_validator, model_validator

from app.lexical import Language
from app.llama.styles import AUTO, Style
from app.messages import Strict
from app.outline import Chunking
from app.prompt import Placement
from app.vllm.settings import VllmSettings

DEMO_MODEL = "demo"
IMPORT_PATH = "deployments.graph:build"  # of the applications in serve_config.yaml that are MindFu

CacheType = Literal["f16", "q8_0", "q4_0"]  # 16, 8.5 and 4.5 bits a number


GpuNumber = Annotated[int, Field(ge=0)]
GpuShare = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
McpName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,29}$")]


class FurtherModel(Strict):
    """One more GGUF that the same replicas serve. None takes what the main model has, but for cache_tokens."""

    model: str  # a path to a .gguf, or hf://org/repo/file.gguf
    chat_template: Style = AUTO  # of its own file, whatever the main model has
    window: int | None = Field(None, ge=128)
    slots: int | None = Field(None, ge=1, le=192)
    cache_tokens: int | None = Field(None, ge=128)
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    gpu_layers: int | None = Field(None, ge=-1)
    gpus: tuple[GpuNumber, ...] | None = None
    gpu_split: tuple[GpuShare, ...] | None = None
    threads: int | None = Field(None, ge=1)
    description: str = ""  # these two are the model's own
    recommended: bool = False


class LLMSettings(Strict):
    """The language model on llama.cpp. With `engine: vllm` it is on vLLM instead: app/vllm/settings.py."""

    engine: Literal["llama_cpp"] = "llama_cpp"
    model: str = DEMO_MODEL  # "demo", a path to a .gguf, or hf://org/repo/file.gguf
    name: str = "mindfu-demo"  # what clients send as `model`
    description: str = ""  # for people who choose a model; empty: what the file says of itself
    recommended: bool = False  # shown to them first
    aliases: tuple[str, ...] = ()  # further names for the same model
    chat_template: Style = AUTO  # auto: the model's own; mistral_inst, for those without one; or a file, *.jinja
    window: int = Field(2048, ge=128)  # tokens of one sequence, prompt and answer
    slots: int = Field(8, ge=1, le=192)  # answers decoded together; of llama.cpp's 256 sequences, 64 keep old prompts
    cache_tokens: int | None = Field(None, ge=128)  # that all slots share; None: each has a window of its own
    prefix_tokens: int | None = Field(None, ge=0)  # of a shared cache, what old prompts keep; 0: nothing is used again
    prefix_memory_bytes: int = Field(2**30, ge=0)  # beside the cache, for prompts that had to leave it
    queue: int = Field(64, ge=0)  # requests that may wait for a slot; one more is a 429
    cache_type_k: CacheType = "f16"  # how the cache stores keys: q8_0 takes half of the memory, for little loss
    cache_type_v: CacheType = "f16"  # and values: other than f16 they need flash attention
    flash_attention: Literal["auto", "on", "off"] = "auto"  # auto: where llama.cpp has it for the model and device
    threads: int | None = Field(None, ge=1)  # None: 1 for models under 100 MB, else the CPUs free to this replica
    gpu_layers: int = Field(0, ge=-1)  # -1: all of them
    gpus: tuple[GpuNumber, ...] | None = None  # of those that num_gpus gave the replica, from 0; None: all of them
    gpu_split: tuple[GpuShare, ...] | None = None  # of the layers, for each of `gpus`; None: by their free memory
    gpu_split_mode: Literal["layer", "row"] = "layer"  # over several GPUs: whole layers, or rows of each
    batch_tokens: int = Field(512, ge=32)  # tokens of one decode step: running sequences first, then prompt chunks
    stall_s: float = Field(0.5, gt=0)  # how long a running answer may stand still for others' prompts and adapters
    speculation: int = Field(16, ge=0, le=32)  # tokens of a draft copied from the prompt; 0: off
    flush_s: float = Field(0.02, ge=0.0, le=1.0)  # deltas of one answer are joined for this long, but the first
    step_timeout_s: float = Field(300.0, gt=0)  # a decode step that takes longer hangs: the replica is replaced
    models: dict[str, FurtherModel] = Field(default_factory=dict)  # by the names that clients send as `model`
    adapters: int = Field(4, ge=0)  # LoRA adapters that stay loaded beside champion and previous, of each model
    warm: int = Field(1, ge=1)  # models loaded at the same time; for another one, the least recently asked for goes
    memory_budget_bytes: int | None = Field(None, ge=1)  # that they may take together; None: what the machine has
    load_wait_s: float = Field(300.0, gt=0)  # how long a request waits for its model to load; then it is a 503

    @model_validator(mode="after")
    def sizes_fit_each_other(self) -> Self:
        if self.batch_tokens < self.slots:
            message = f"batch_tokens is {self.batch_tokens}, it must not be below slots, {self.slots}"
            raise ValueError(message)
        if self.cache_tokens is not None and self.cache_tokens < self.window:
            message = f"cache_tokens is {self.cache_tokens}, it must not be below window, {self.window}"
            raise ValueError(message)
        if self.cache_type_v != "f16" and self.flash_attention == "off":
            message = f"cache_type_v is {self.cache_type_v}, which needs flash_attention on or auto, not off"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def gpus_are_used(self) -> Self:
        if self.gpus is not None and not self.gpu_layers:
            message = (
                f"gpus is {self.gpus}, but gpu_layers is 0, so nothing would run there: set it to -1 for all layers"
            )
            raise ValueError(message)
        if self.gpus is not None and (not self.gpus or len(set(self.gpus)) < len(self.gpus)):
            message = f"gpus is {self.gpus}; it must name at least one GPU, and each once"
            raise ValueError(message)
        if self.gpu_split is not None and (len(self.gpu_split) != len(self.gpus or ()) or not sum(self.gpu_split)):
            message = (
                f"gpu_split has {len(self.gpu_split)} shares, gpus names {len(self.gpus or ())}: one for each of them"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def every_model_is_complete(self) -> Self:
        if taken := {self.name, *self.aliases} & set(self.models):
            message = f"models: {', '.join(sorted(taken))} is the main model's name or alias already"
            raise ValueError(message)
        for name in self.models:
            self.of(name)
        return self

    @property
    def shares_cells(self) -> bool:
        """Whether sequences share one cache, in which old prompts can stay, rather than have each a part of it."""
        return self.cache_tokens is not None or bool(self.prefix_tokens)

    def of(self, name: str) -> "LLMSettings":
        """The settings of one model: the main one's, with what a further one says otherwise."""
        own = {} if name == self.name else self.models[name].model_dump(exclude_none=True)
        other = {"cache_tokens"} if own else set()
        if own.get("gpu_layers") == 0:
            other |= {"gpus", "gpu_split"}
        elif "gpus" in own:
            other |= {"gpu_split"}
        mine = self.model_dump(exclude={"aliases", "models", *other})
        return LLMSettings.model_validate(mine | own | {"name": name})


def _engine(given: Any) -> Any:
    return given.get("engine", "llama_cpp") if isinstance(given, Mapping) else getattr(given, "engine", None)


ENGINES: Mapping[str, type[Strict]] = {"llama_cpp": LLMSettings, "vllm": VllmSettings}
AnyLLMSettings = Annotated[
    Annotated[LLMSettings, Tag("llama_cpp")] | Annotated[VllmSettings, Tag("vllm")],
    Discriminator(
        _engine, custom_error_type="engine", custom_error_message="llm.engine must be llama_cpp, the default, or vllm"
    ),
]


class EmbeddingSettings(Strict):
    """The embedding model (sentence-transformers)."""

    model: str = "all-MiniLM-L6-v2"  # this one comes with the installation; else a name or path
    backend: Literal["auto", "torch", "openvino"] = "auto"  # auto: OpenVINO on CPUs, PyTorch where there is a GPU
    batch_size: int = Field(16, ge=1)  # texts of one forward pass
    batch_wait_s: float = Field(0.002, ge=0.0)  # how long a query waits for company
    threads: int = Field(1, ge=1)
    language: Language = "english"  # of the documents: stems and stop words of the words' half of a search


class RagSettings(Strict):
    """Retrieval in chat. Requests may override `enabled`, memory, top_k, collections and min_score in `rag`."""

    enabled: bool = True
    memory: bool = False  # find what was said in the tenant's other conversations, too
    collections: tuple[str, ...] = ("default",)
    top_k: int = Field(5, ge=1, le=100)
    min_score: float = Field(0.3, ge=-1.0, le=1.0)  # cosine; half of it is enough with half of the query's words
    token_budget: int = Field(1024, ge=64)  # of the retrieved block, at most half of what the window has free
    placement: Placement = "last_user"
    neighbours: int = Field(0, ge=0, le=5)  # chunks shown around each passage; more passages do more (retrieval.md)
    rerank: str | None = None  # a cross-encoder of sentence-transformers, by name or path; None: fused scores rank
    rerank_candidates: int = Field(30, ge=1, le=100)  # passages that it reads for each question


class DocumentSettings(Strict):
    """Reading and cutting documents. Reading runs in a child process under these limits."""

    chunking: Chunking = "structure"  # or "plain": paragraphs and sentences, whatever the document is
    chunk_chars: int = Field(512, ge=64, le=8192)
    overlap_chars: int = Field(50, ge=0)
    max_bytes: int = Field(32 * 2**20, ge=1)
    max_pages: int = Field(2000, ge=1)
    max_text_chars: int = Field(8_000_000, ge=1)
    readers: int = Field(2, ge=1, le=64)  # files read at the same time; the others wait
    read_timeout_s: float = Field(60.0, gt=0)
    read_memory_bytes: int = Field(2 * 2**30, ge=2**28)

    @model_validator(mode="after")
    def overlap_is_shorter_than_a_chunk(self) -> Self:
        if self.overlap_chars >= self.chunk_chars:
            message = f"overlap_chars is {self.overlap_chars}, it must be below chunk_chars, {self.chunk_chars}"
            raise ValueError(message)
        return self


class McpSettings(Strict):
    """One MCP server: a program that is started here, or a URL. Tokens stand in the environment, never here."""

    command: tuple[str, ...] = ()  # the program and its arguments
    cwd: Path | None = None  # where it runs; None: where we do
    env: dict[str, str] = Field(default_factory=dict)  # beside PATH, HOME, USER and the like: nothing else is handed on
    pass_env: tuple[str, ...] = ()  # variables of our own environment that it gets, such as its token
    url: str | None = Field(None, pattern=r"^https?://")  # of its streamable HTTP
    token_env: str | None = None  # the variable with the bearer token for `url`
    only: tuple[str, ...] | None = None  # of its tools, by its own names; None: all
    timeout_s: float = Field(30.0, gt=0)  # of one call

    @model_validator(mode="after")
    def one_of_two(self) -> Self:
        if bool(self.command) == bool(self.url):
            message = "give either command, for a program that is started here, or url"
            raise ValueError(message)
        if self.url and (self.env or self.pass_env or self.cwd):
            message = "env, pass_env and cwd are those of a command; a url takes token_env"
            raise ValueError(message)
        if self.command and self.token_env:
            message = "token_env is for a url; a command gets variables by pass_env"
            raise ValueError(message)
        return self


class ToolSettings(Strict):
    """Tools that the server runs for the model. Beside `enabled` a key needs the scope `tools`, and a request asks."""

    enabled: bool = False
    roots: tuple[Path, ...] = ()  # folders to work in, the same for all tenants; none: workspace/<tenant> in the home
    protected: tuple[Path, ...] = ()  # never touched, beside the system's folders and our home
    max_iterations: int = Field(5, ge=1, le=100)  # rounds of calls for one answer
    timeout_s: float = Field(10.0, gt=0)  # of one call
    max_file_bytes: int = Field(2**20, ge=1)  # of a file that is read or written
    max_result_chars: int = Field(16_000, ge=100)  # of what the model is told of one call
    private_network: bool = False  # the network tools reach this machine and its network, too
    functions: tuple[str, ...] = ()  # further tools, as module:function
    without: tuple[str, ...] = ()  # tools that are not offered, by name
    mcp: dict[McpName, McpSettings] = Field(default_factory=dict)  # servers whose tools are offered, as <name>__<tool>


class ChatSettings(Strict):
    """POST /chat and /generate. Requests may say otherwise, but for the first, and operators by /command."""

    max_conversation_tokens: int = Field(3000, ge=64)  # of a session's history that the model is shown; see sessions.md
    system_prompt: str = ""
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    max_tokens: int = Field(2048, ge=1)  # yields to the window
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    top_k: int = Field(40, ge=0)
    repeat_penalty: float = Field(1.1, gt=0.0, le=10.0)


class GatewaySettings(Strict):
    """HTTP limits."""

    max_body_bytes: int = Field(8 * 2**20, ge=1024)  # of a JSON request; uploads have documents.max_bytes
    answer_timeout_s: float = Field(600.0, gt=0)  # of one answer, queueing included
    wake_wait_s: float = Field(50.0, gt=0)  # for a model without a replica, then a 503; balancers hang up after 60
    cors_origins: tuple[str, ...] = ()  # web pages that may call, like https://chat.example.org
    log_texts: bool = False  # the log says what was asked and answered, beside who, when and how long


class WatchSettings(Strict):
    """Taking back adapters that do worse than what they replaced. Shares from 0 to 1; a rise counts where it is certain
    (three standard errors).
    """

    enabled: bool = True
    every_s: float = Field(5.0, gt=0)
    hours: float = Field(24.0, gt=0)  # that a promotion is watched; as long before is what it is compared with
    min_turns: int = Field(20, ge=1)  # answers, below which nothing is said of them
    max_error_rise: float = Field(0.05, ge=0, le=1)  # of the share that failed or did not end
    min_ratings: int = Field(10, ge=1)  # rated or corrected answers, of both
    max_dislike_rise: float = Field(0.1, ge=0, le=1)  # of the share of these that is rated below 0, or just corrected


class TrainingSettings(Strict):
    """Training without being asked. What its stages do is said in params.yaml."""

    after_ratings: int | None = Field(None, ge=1)  # begin when so many turns were rated or corrected since the last run
    schedule: str | None = None  # begin at these times, as cron has them: "0 3 * * 0" is Sunday at three
    tenants: tuple[str, ...] = Field(("default",), min_length=1)  # whose conversations are learnt from
    promote: bool = False  # let what passes its gates answer

    @field_validator("schedule")
    @classmethod
    def schedule_is_one(cls, given: str | None) -> str | None:
        try:
            if given is not None:
                CronSim(given, datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise ValueError(
                f"'{given}' is no time as cron has it ({error}); '0 3 * * *' is every night at three"
            ) from error
        return given


class Settings(Strict):
    """The arguments of `deployments.graph:build`."""

    llm: AnyLLMSettings = LLMSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    rag: RagSettings = RagSettings()
    documents: DocumentSettings = DocumentSettings()
    gateway: GatewaySettings = GatewaySettings()
    chat: ChatSettings = ChatSettings()
    tools: ToolSettings = ToolSettings()
    training: TrainingSettings = TrainingSettings()
    watch: WatchSettings = WatchSettings()


class Secrets(Strict):
    """What must not stand in a file that people share."""

    api_key: SecretStr | None = None  # MINDFU_API_KEY: required as soon as we listen beyond loopback
    key_pepper: SecretStr | None = None  # MINDFU_KEY_PEPPER: the same for all gateways; None: a file of the home folder
    postgres_url: SecretStr | None = None  # MINDFU_POSTGRES_URL: None starts the embedded PostgreSQL
    qdrant_url: str | None = None  # MINDFU_QDRANT_URL: None starts the embedded Qdrant
    qdrant_api_key: SecretStr | None = None  # MINDFU_QDRANT_API_KEY
    teacher_key: SecretStr | None = None  # MINDFU_TEACHER_KEY: of the server that train.generate asks
    judge_key: SecretStr | None = None  # MINDFU_JUDGE_KEY: of the server that train.evaluate asks what it prefers

    @classmethod
    def from_env(cls) -> Self:
        """Read from MINDFU_<FIELD>; an empty variable counts as unset."""
        return cls.model_validate({name: os.environ.get(f"MINDFU_{name.upper()}") or None for name in cls.model_fields})


class Client(Strict):
    """Where commands find a server that is not of this home."""

    url: str | None = None  # MINDFU_URL
    api_key: SecretStr | None = None  # MINDFU_API_KEY

    @classmethod
    def from_env(cls) -> Self:
        """Read from MINDFU_<FIELD>; an empty variable counts as unset."""
        return cls.model_validate({name: os.environ.get(f"MINDFU_{name.upper()}") or None for name in cls.model_fields})


def environment() -> Mapping[str, str]:
    """The variables that MCP servers may be handed, by name."""
    return dict(os.environ)


def home() -> Path:
    """The folder that holds everything: MINDFU_HOME, or .mindfu where `serve run` was started. Absolute."""
    return Path(os.environ.get("MINDFU_HOME", ".mindfu")).resolve()


def params_file() -> Path:
    """What the stages of the learning loop are told: MINDFU_PARAMS, or params.yaml of the working folder. Absolute."""
    return Path(os.environ.get("MINDFU_PARAMS", "params.yaml")).resolve()
