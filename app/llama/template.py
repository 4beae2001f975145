"""The chat template of a GGUF: messages in, prompt segments out. It knows no tokens.

Templates are Jinja in the dialect of Hugging Face transformers, rendered in Jinja's immutable sandbox. They come with
the model file, never with a request.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.arguments import value_of
from app.errors import InvalidRequest, Misconfigured
from app.llama.arrange import ARRANGEMENTS, described, object_arguments, one_call_each, short_ids, told
from app.llama.syntax import CallParser, syntax_of
from app.llama.untrusted import MARKED, Alphabet, Segment, dump_json
from app.messages import Message, Tool, ToolCall


class TemplateRefusedError(jinja2.TemplateError):
    """The template called `raise_exception`: it does not take such messages."""


class GenerationTag(Extension):
    """`{% generation %}`, with which templates frame answers for training: the frame is nothing, its body counts."""

    tags = {"generation"}  # noqa: RUF012 — as the base class has it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """What transformers gives to a chat template, and no more."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
        self.filters["tojson"] = tojson
        self.globals.update(raise_exception=refuse, strftime_now=strftime_now)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what a macro wrote; one piece stays as it is, so that untrusted text stays an `Untrusted`."""
        filled = [piece for piece in pieces if piece]
        return filled[0] if len(filled) == 1 else "".join(filled)


def refuse(message: str) -> NoReturn:
    """`raise_exception` of the templates."""
    raise TemplateRefusedError(message)


def strftime_now(form: str) -> str:
    """The time in UTC, for templates that tell the model the date."""
    return datetime.now(UTC).strftime(form)


def tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: ARG001 — transformers' signature; we always write UTF-8, as it does by default
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter as transformers defines it: no HTML escapes."""
    return dump_json(value, indent=indent, separators=separators, sort_keys=sort_keys)


class Rendered(NamedTuple):
    """A rendered prompt. thinking: it ends within the model's thoughts, which the template began."""

    segments: list[Segment]
    thinking: bool


class ChatTemplate:
    """A compiled template. bos, eos: the texts of these tokens, which templates write out themselves.

    syntax: how the models that it was written for make thoughts and calls; parser: who says so, the template or people.
    setting: where it comes from, for errors.
    """

    def __init__(
        self, source: str, *, bos: str = "", eos: str = "", parser: CallParser = "auto", setting: str = "llm.model"
    ) -> None:
        if any(character >= MARKED[1] for character in source):
            raise Misconfigured(setting, "its chat template uses private code points", "Use another one")
        try:
            self._template = Sandbox().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            problem = f"its chat template is no Jinja that we understand (line {error.lineno}: {error.message})"
            raise Misconfigured(setting, problem, "Give one that is repaired: llm.chat_template") from error
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self.syntax = syntax_of(source, parser)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        thinking: bool | None = None,
        answering: bool = True,
    ) -> Rendered:
        """The prompt up to where the answer begins. thinking: whether the model should; None as the template has it.

        answering: False ends where the last message does, which is how answers look that a model learns from.

        A template that refuses the messages as they are, or leaves out some, is given them rearranged. Raises
        InvalidRequest with the template's own words where it refuses that too.
        """
        switch = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        try:
            return self._first_that_works(messages, tools, switch | {"add_generation_prompt": answering})
        except RecursionError as error:
            raise InvalidRequest("The model's chat template cannot render tools nested so deeply.", "tools") from error

    def _first_that_works(
        self, messages: Sequence[Message], tools: Sequence[Tool], switch: dict[str, bool]
    ) -> Rendered:
        failure: Exception | None = None
        incomplete: Rendered | None = None
        for arranged, shown in self._ways(messages, tools):
            try:
                rendered, complete = self._render(arranged, shown, switch)
            except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
                failure = failure or error
            else:
                if complete:
                    return rendered
                incomplete = incomplete or rendered
        if incomplete:
            return incomplete
        verb = "refuses" if isinstance(failure, TemplateRefusedError) else "cannot render"
        raise InvalidRequest(f"The model's chat template {verb} these messages: {failure}", "messages") from failure

    def _ways(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> Iterator[tuple[Sequence[Message], Sequence[Tool]]]:
        """Messages and tools as the template may take them, the likeliest first."""
        if self.syntax.own:
            if self.syntax.family == "llama":
                messages = one_call_each(messages)
            elif self.syntax.family in ("mistral", "devstral"):
                messages = short_ids(messages)
            elif self.syntax.family in ("coder", "glm"):
                messages = object_arguments(messages)
            for arrange in ARRANGEMENTS:
                yield arrange(messages), tools
        if self.syntax.family == "hermes":  # whose words these are, too
            for arrange in ARRANGEMENTS:
                yield arrange(told(messages, tools)), ()

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], switch: dict[str, bool]
    ) -> tuple[Rendered, bool]:
        """A prompt, and whether it holds all that the model is to know: some templates take one system prompt only."""
        alphabet = Alphabet()
        rendered = self._template.render(
            messages=[_as_template_sees(message, alphabet.mark) for message in messages],
            tools=[_marked(described(tool), alphabet.mark) for tool in tools] or None,
            documents=None,
            **switch,
            **self._tokens,
        )
        segments = list(alphabet.segments(rendered))
        end = segments[-1].text.rstrip() if segments and segments[-1].trusted else ""
        thinking = self.syntax.thoughts is not None and end.endswith(self.syntax.thoughts[0])
        known = (alphabet.mark(message.content.strip()) for message in messages if message.role != "assistant")
        return Rendered(segments, thinking), all(str.__contains__(rendered, content) for content in known)


def _as_template_sees(message: Message, mark: Callable[[str], str]) -> dict[str, Any]:
    """The form that transformers gives a message. A field without a value is absent: templates ask for its presence."""
    seen: dict[str, Any] = {"role": message.role, "content": mark(message.content)}
    if message.reasoning:
        seen["reasoning_content"] = mark(message.reasoning)
    if message.name is not None:
        seen["name"] = mark(message.name)
    if message.tool_call_id is not None:
        seen["tool_call_id"] = mark(message.tool_call_id)
    if message.tool_calls:
        seen["tool_calls"] = [_call_as_template_sees(call, mark) for call in message.tool_calls]
    return seen


def _call_as_template_sees(call: ToolCall, mark: Callable[[str], str]) -> dict[str, Any]:
    try:
        arguments = _marked(value_of(call.arguments), mark)
    except ValueError:
        arguments = mark(call.arguments)  # a malformed call that some model made: shown as it was written
    function = {"name": mark(call.name), "arguments": arguments}
    return {"id": mark(call.id), "type": "function", "function": function}


def _marked(value: Any, mark: Callable[[str], str]) -> Any:
    """A value of JSON with all of its texts marked, the names of its fields too."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, dict):
        return {mark(key): _marked(item, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, mark) for item in value]
    return value
