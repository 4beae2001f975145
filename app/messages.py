"""What the parts of MindFu say to each other: the contract of the LLM boundary, and the passages of retrieval.

Gateways translate a client's dialect to and from these types; engines know nothing else. Requests are frozen pydantic
models, JSON-compatible; the items of a stream are slotted dataclasses, because there are thousands a second.
A change that an old replica could misread raises `CONTRACT`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

CONTRACT: Literal[1] = 1

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
WELL = frozenset({"ok", "asleep", "starting"})  # states of a part, by GET /health, that call for nobody
JsonSchema = dict[str, Any]
Metadata = dict[str, str | int | float | bool | None]  # flat, of at most 16 kB as JSON


class Strict(BaseModel):
    """Frozen, and a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolCall(Strict):
    """A function call that an assistant made. arguments: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(Strict):
    """One message of a chat, plain text. reasoning: what an assistant thought before it answered."""

    role: Role
    content: str = ""
    reasoning: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(Strict):
    """A function that the model may call. parameters: the JSON Schema of its arguments, an object's."""

    name: str
    description: str = ""
    parameters: JsonSchema = Field(default_factory=dict)
    strict: bool = False  # free calls too are held to the schema


class NamedTool(Strict):
    """The one function that must be called."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


class JsonFormat(Strict):
    """The answer must be JSON. json_schema: what it must satisfy; None: any object."""

    json_schema: JsonSchema | None = None


class Sampling(Strict):
    """How the next token is drawn. The defaults change nothing: plain sampling at temperature 1."""

    temperature: float = Field(1.0, ge=0.0, le=2.0)  # 0 is greedy
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)  # 0 is off
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    repeat_penalty: float = Field(1.0, gt=0.0, le=10.0)  # 1 is off
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    seed: int | None = Field(None, ge=0, le=2**32 - 2)  # 2**32 - 1 means "random" to llama.cpp
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(default_factory=dict, max_length=1024)
    ignore_eos: bool = False  # go on to max_tokens, whatever the model says


class Generate(Strict):
    """Ask an LLM replica for `n` answers: to a chat (`messages`), or to continue a text (`prompt`).

    model: as the client named it, resolved; adapter: the version that answers, None for the bare base.
    logprobs: how many alternatives are told with each token's log-probability; None tells nothing.
    """

    contract: Literal[1] = CONTRACT
    request_id: str
    tenant: str = "default"
    model: str
    adapter: str | None = None
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: JsonFormat | None = None
    thinking: bool | None = None  # of a model that reasons: None as its template has it
    n: int = Field(1, ge=1, le=16)
    logprobs: int | None = Field(None, ge=0, le=20)
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = Field((), max_length=4)
    max_tokens: int | None = Field(None, ge=1)  # None: as far as the window reaches
    clip: bool = False  # max_tokens yields to the window, instead of being refused
    stream: bool = True  # False: nobody reads the answer before its end, so that its pieces may join for longer


class Usage(Strict):
    """Tokens, by the model's own tokenizer.

    cached_tokens: the part of the prompt that needed no prefill; reasoning_tokens: the part of the answer that came
    before its text.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Timings(Strict):
    """Where the engine's time went, seconds: waiting for a slot, prompt, answer."""

    queued_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a tool call. index: which call of the answer, from 0. id and name: with its first piece only.

    The arguments of all pieces of one call concatenate to JSON text.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have come at a place. logprob: natural, of the model's own distribution, before sampling."""

    text: str  # with U+FFFD where the bytes are no whole characters
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that came, and the likeliest ones at its place, best first."""

    chosen: Alternative
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer: whole characters, from `tokens` tokens. May join several steps of the engine.

    Within one piece, reasoning comes before text and text before tool calls. choice: which of the `n` answers.
    """

    text: str
    tokens: int
    choice: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """Nothing new, but the replica is there: between it and the gateway, and nobody else sees one."""


@dataclass(frozen=True, slots=True)
class End:
    """How one of the answers ended. stop: the stop string that ended it, which is not part of the text."""

    finish_reason: FinishReason
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The last item of every stream that did not fail. ends: one for each of the `n` answers, in their order."""

    ends: tuple[End, ...]
    usage: Usage  # prompt once, completions summed
    timings: Timings

    @property
    def finish_reason(self) -> FinishReason:
        """Of the first answer."""
        return self.ends[0].finish_reason


class Measure(Strict):
    """Token counts for planning a prompt: the request as it stands, and each of some texts alone."""

    prompt_tokens: int
    text_tokens: tuple[int, ...]
    window: int


class ModelCard(Strict):
    """What a replica serves. loaded: whether it answers at once; before it ever was, its own metadata are not known.

    adapters: the versions that it has loaded.
    """

    name: str
    window: int  # tokens, prompt and answer
    parameters: int | None
    file_bytes: int | None
    description: str  # as the model's own metadata say
    loaded: bool = True
    adapters: tuple[str, ...] = ()

    @classmethod
    def unseen(cls, name: str, window: int) -> Self:
        """Of a model that was never loaded: what settings say of it."""
        told = "not loaded yet"
        return cls(name=name, window=window, parameters=None, file_bytes=None, description=told, loaded=False)


class ModelFile(Strict):
    """Where a model comes from. source: as the settings have it; file: its name; layers: on GPUs, -1 is all.

    exists: it is on the machine of the replica. size, memory (weights, cache and buffers): bytes, None where the file
    is not here or cannot be read.
    """

    name: str
    source: str
    file: str
    exists: bool
    size: int | None
    memory: int | None
    layers: int
    description: str
    recommended: bool


class Search(Strict):
    """Find passages. min_score: cosine similarity, below which a passage is dropped.

    only: the documents that may be found, None for all of the tenant's; without: documents that may not.
    neighbours: how many chunks before and behind each passage are shown with it.
    """

    query: str
    tenant: str = "default"
    collections: tuple[str, ...] = ("default",)
    top_k: int = Field(5, ge=1, le=100)
    min_score: float = Field(0.3, ge=-1.0, le=1.0)
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    neighbours: int = Field(0, ge=0, le=5)


class RagOptions(Strict):
    """What a request wants otherwise than the settings say; None takes the setting."""

    top_k: int | None = Field(None, ge=1, le=100)
    collections: tuple[str, ...] | None = Field(None, min_length=1, max_length=16)
    min_score: float | None = Field(None, ge=-1.0, le=1.0)
    memory: bool | None = None


class Passage(Strict):
    """A chunk of a document, found. start, end: characters of the document's text; chunk counts from 0, page from 1.

    heading: the headings above it, outermost first, like "Guide › Install".
    """

    document_id: str
    collection: str
    title: str
    chunk: int
    text: str
    score: float = Field(allow_inf_nan=False)
    page: int | None = None
    start: int
    end: int
    conversation_id: str | None = None  # where it was said, of a passage from memory
    heading: str = ""


class Chunk(Strict):
    """A piece of a document's text, ready to embed. number counts from 0; start, end: characters; page from 1.

    heading: the headings above it, outermost first, like "Guide › Install".
    """

    number: int
    text: str
    start: int
    end: int
    page: int | None = None
    heading: str = ""


class Index(Strict):
    """Make a document's chunks findable. Idempotent: the same document again replaces its chunks."""

    tenant: str = "default"
    collection: str
    document_id: str
    title: str
    chunks: tuple[Chunk, ...]


class NewText(Strict):
    """Take in a text. title: None takes its first line. chunk: false keeps it as one passage."""

    content: str
    title: str | None = None
    metadata: Metadata = Field(default_factory=dict)
    chunk: bool = True
    collection: str = "default"


class Document(Strict):
    """A document that was taken in. name: of its file; sha256: of the content, hexadecimal; size: bytes."""

    id: str
    tenant: str = "default"
    collection: str
    title: str
    name: str | None = None
    media_type: str
    sha256: str
    size: int
    chunks: int
    created_at: datetime
    metadata: Metadata


class Added(Strict):
    """What became of a document that was sent. duplicate: the collection held its content already; nothing changed."""

    document: Document
    duplicate: bool
