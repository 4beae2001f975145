"""Requests to OpenAI's chat completions and completions, translated for the engine. Pure functions over parsed JSON.

Field by field after https://platform.openai.com/docs/api-reference; beyond it we take `top_k`, `min_p`,
`repeat_penalty`, `ignore_eos`, `chat_template_kwargs.enable_thinking`, `rag` and `server_tools`. A field is handled, or
kept with the turn because it cannot change the answer (Kept), or refused by its name: never accepted and ignored.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationInfo, field_validator

from app.dialects.events import Json
from app.dialects.openai_messages import ChatMessage, Exact, TextPart, internal
from app.dialects.openai_tools import (
    Choice,
    FunctionDefinition,
    FunctionTool,
    NamedFunction,
    Offer,
    OlderChoice,
    ResponseFormat,
    answer_format,
    offered,
)
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Generate, RagOptions, Sampling, Tool
from app.tools.offer import PARAM, ServerTools

NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "modalities": (["text"],),
    "moderation": (),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Options of OpenAI's that are not supported, with the values that ask for nothing. null always does."""

MOST_TOKENS = 2**31 - 1
MOST_ANSWERS = 128  # of one request with several prompts


def at_most(most: int) -> BeforeValidator:
    """Refuses a larger object before its values are looked at: pydantic makes an error of each of them."""

    def check(given: object) -> object:
        if isinstance(given, dict) and len(given) > most:
            message = f"{len(given)} entries, at most {most} are allowed"
            raise ValueError(message)
        return given

    return BeforeValidator(check)


Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1024)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[Number, Field(ge=-100.0, le=100.0)]


class StreamOptions(Exact):
    """include_obfuscation: pad the chunks, so that their sizes do not tell the lengths of words."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Prediction(Exact):
    """What the client thinks will come."""

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(max_length=1024)]


class Kept(BaseModel):
    """Fields that are kept with the turn: none of them changes what a model of ours answers."""

    client_metadata: Json | None = None
    metadata: Annotated[dict[Text, Text], at_most(16)] | None = None
    prediction: Prediction | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_options: Json | None = None
    prompt_cache_retention: Text | None = None
    safety_identifier: Text | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    store: bool | None = None
    user: Text | None = None

    def kept(self) -> Json:
        """Those that were given."""
        return self.model_dump(mode="json", include=set(Kept.model_fields), exclude_none=True)


class GenerationRequest(Kept):
    """What chat completions and completions have in common."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: Annotated[Number, Field(ge=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0.0, le=10.0)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2.0, le=2.0)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logit_bias: Annotated[dict[TokenId, Bias], at_most(1024)] | None = None
    ignore_eos: bool | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    n: int | None = Field(None, ge=1, le=16)

    @field_validator("stream_options")
    @classmethod
    def stream_options_need_stream(cls, given: StreamOptions | None, fields: ValidationInfo) -> StreamOptions | None:
        if given is not None and not fields.data.get("stream"):
            message = "only allowed when 'stream' is true"
            raise ValueError(message)
        return given

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def include_obfuscation(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    def only_known(self) -> None:
        """Raises UnsupportedOption for a field that we must refuse."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and not _asks_for_nothing(name, value):
                raise UnsupportedOption(_refusal(name, value), name)

    def sampling(self) -> Sampling:
        """The given values over our neutral defaults. Seeds of any sign fold into what llama.cpp takes."""
        given = self.model_dump(include=set(Sampling.model_fields), exclude_none=True)
        if "seed" in given:
            given["seed"] %= 2**32 - 1
        if "logit_bias" in given:
            given["logit_bias"] = {int(token): bias for token, bias in given["logit_bias"].items()}
        return Sampling(**given)

    def stops(self) -> tuple[str, ...]:
        """Empty strings stop nothing, and are refused."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(stops):
            raise InvalidRequest("'stop' holds an empty string, which would end every answer at once.", "stop")
        return stops


class TemplateOptions(Exact):
    """What other servers hand to a model's chat template; of ours only this may be chosen."""

    enable_thinking: bool | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    tools: list[FunctionTool] | None = Field(None, max_length=1024)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = Field(None, max_length=1024)
    function_call: OlderChoice | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    rag: bool | RagOptions | None = None
    server_tools: ServerTools | None = None

    def generate(self, request_id: str, tenant: str, model: str, served: Sequence[Tool] = ()) -> Generate:
        """For the engine. served: the server's tools. Raises InvalidRequest for what cannot be honoured.

        `max_completion_tokens` is the newer name and wins. A model that reasons does so at one effort: `none` and
        `minimal` switch it off, the others on.
        """
        self.only_known()
        tools, choice = self._offer(served)
        if served and (self.n or 1) > 1:
            raise InvalidRequest(f"'{PARAM}' work for one answer: leave 'n' out, it is {self.n}.", "n")
        return Generate(
            request_id=request_id,
            tenant=tenant,
            model=model,
            messages=internal(self.messages),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False and not self.older_calls,
            response_format=answer_format(self.response_format),
            thinking=self._thinking(),
            n=self.n or 1,
            logprobs=self._logprobs(),
            sampling=self.sampling(),
            stop=self.stops(),
            max_tokens=self.max_completion_tokens or self.max_tokens,
        )

    @property
    def older_calls(self) -> bool:
        """Whether calls are to be told in OpenAI's older form, of which an answer has one at most."""
        return bool(self.functions)

    def _offer(self, served: Sequence[Tool]) -> Offer:
        if self.functions and self.tools:
            raise InvalidRequest("'functions' is the older form of 'tools': send one of the two.", "functions")
        if self.functions:
            return offered(self.functions, self.function_call, param="function_call", served=served)
        if isinstance(self.function_call, NamedFunction):
            raise InvalidRequest("'function_call' needs 'functions'.", "function_call")
        definitions = (tool.function for tool in self.tools or ())
        return offered(definitions, self.tool_choice, param="tool_choice", served=served)

    def _thinking(self) -> bool | None:
        if self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking is not None:
            return self.chat_template_kwargs.enable_thinking
        return None if self.reasoning_effort is None else self.reasoning_effort not in {"none", "minimal"}

    def _logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: texts to continue, each for itself."""

    prompt: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1, max_length=2048)]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=16)

    def generates(self, request_id: str, tenant: str, model: str) -> list[Generate]:
        """For the engine, one for each prompt. OpenAI's default of 16 tokens is kept.

        `best_of` answers are asked for with their log-probabilities, for the renderer to pick the likeliest. Raises
        InvalidRequest for what cannot be honoured.
        """
        self.only_known()
        prompts, best_of = self._prompts(), self._best_of()
        if len(prompts) * best_of > MOST_ANSWERS:
            message = f"{len(prompts)} prompts with {best_of} answers each: at most {MOST_ANSWERS} answers a request."
            raise InvalidRequest(message, "prompt")
        first = Generate(
            request_id=request_id,
            tenant=tenant,
            model=model,
            prompt=prompts[0],
            n=best_of,
            logprobs=0 if self.logprobs is None and best_of > self.wanted else self.logprobs,
            sampling=self.sampling(),
            stop=self.stops(),
            max_tokens=self.max_tokens or 16,
        )
        others = enumerate(prompts[1:], start=1)
        return [first] + [
            first.model_copy(update={"prompt": prompt, "request_id": f"{request_id}-{number}"})
            for number, prompt in others
        ]

    @property
    def wanted(self) -> int:
        """How many answers to each prompt are told."""
        return self.n or 1

    def _prompts(self) -> list[str]:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            raise UnsupportedOption("Token ids belong to another model's tokenizer: send the prompt as text.", "prompt")
        if self.echo and self.logprobs is not None:
            message = "'echo' with 'logprobs' would need the log-probabilities of the prompt, which are not told."
            raise UnsupportedOption(message, "echo")
        return texts

    def _best_of(self) -> int:
        best_of = self.best_of or self.wanted
        if best_of < self.wanted:
            raise InvalidRequest(f"'best_of' is {best_of}, it must not be below 'n', {self.wanted}.", "best_of")
        if best_of > self.wanted and self.stream:
            raise InvalidRequest("The best of several answers is known at their end: it cannot be streamed.", "best_of")
        return best_of


def _asks_for_nothing(name: str, value: object) -> bool:
    return any(value == neutral and type(value) is type(neutral) for neutral in NEUTRAL.get(name, ()))  # 0 is not False


def _refusal(name: str, value: object) -> str:
    if name in NEUTRAL:
        allowed = "".join(f", or send {neutral!r}" for neutral in NEUTRAL[name])
        return f"'{name}' is not supported by this version; leave it out{allowed}."
    shown = repr(value)
    return f"Unknown parameter '{name}' (value {shown[:60]}). It might change the answer, so it is not ignored."
