"""How a family of models writes thoughts and tool calls, recognised from the chat template of the GGUF. Pure.

hermes    <tool_call>{"name": …, "arguments": …}</tool_call>      Hermes, Qwen, and every template without its own
coder     <tool_call><function=name><parameter=key>…              Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5
glm       <tool_call>name<arg_key>…</arg_key><arg_value>…         GLM from 4.5 on
mistral   [TOOL_CALLS][{"name": …, "arguments": …}]               Mistral up to Small 3.1
devstral  [TOOL_CALLS]name[ARGS]{…}                               Devstral, Magistral, Mistral Small 3.2 and later
llama     {"name": …, "parameters": …}                            Llama 3.x
"""

import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from app.llama import json_calls, xml_calls
from app.llama.reader import Reader, Steps
from app.messages import JsonSchema

Family = Literal["hermes", "coder", "glm", "mistral", "devstral", "llama"]
CallParser = Literal["auto", "hermes", "coder", "glm", "mistral", "llama"]  # mistral: of both generations
READERS: dict[Family, Callable[[Reader], Steps[None]]] = {
    "hermes": json_calls.hermes,
    "coder": xml_calls.coder,
    "glm": xml_calls.glm,
    "mistral": json_calls.mistral,
    "devstral": json_calls.devstral,
    "llama": json_calls.llama,
}
MARKS: dict[Family, tuple[str, str]] = {  # opening, closing
    "hermes": ("<tool_call>", "</tool_call>"),
    "coder": ("<tool_call>", "</tool_call>"),
    "glm": ("<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]", ""),
    "devstral": ("[TOOL_CALLS]", ""),
    "llama": ("", ""),
}
INNER: dict[Family, tuple[str, ...]] = {
    "devstral": ("[ARGS]", "[CALL_ID]"),
    "glm": ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "llama": ("<|python_tag|>",),
}
ID_LETTERS, ID_LENGTH = string.ascii_letters + string.digits, 9  # Mistral's templates insist on nine of these


@dataclass(frozen=True)
class Syntax:
    """The marks of a family. own: the template itself shows tools to the model.

    opening: marks after which a call follows; empty where a call is the whole answer. thoughts: the marks around them.
    """

    family: Family
    own: bool
    opening: str
    closing: str
    thoughts: tuple[str, str] | None

    @property
    def marks(self) -> tuple[str, ...]:
        """All of them. Where the vocabulary has tokens for these, they are text to us and not control."""
        inner = INNER.get(self.family, ())
        return tuple(filter(None, (self.opening, self.closing, *(self.thoughts or ()), *inner)))

    def reader(self, tools: Mapping[str, JsonSchema], *, first: int = 0, most: int | None = None) -> Reader:
        """Reads what stands behind the opening mark; see `Reader`."""
        return Reader(READERS[self.family], tools, first=first, most=most, new_id=new_id)


def syntax_of(template: str, parser: CallParser = "auto") -> Syntax:
    """The syntax of the family that a chat template was written for, or of one that is said to write calls here."""
    found = recognise(template)
    if parser == "auto":
        return found
    family: Family = "devstral" if parser == "mistral" and "[ARGS]" in template else parser
    return found if family == found.family else Syntax(family, found.own, *MARKS[family], found.thoughts)


def recognise(template: str) -> Syntax:
    """The syntax of the family that a chat template was written for."""
    own = "tools" in template
    if "[TOOL_CALLS]" in template:
        family: Family = "devstral" if "[ARGS]" in template else "mistral"
        thoughts = ("[THINK]", "[/THINK]") if "[THINK]" in template else None
        return Syntax(family, own, "[TOOL_CALLS]", "", thoughts)
    llama = "<|start_header_id|>" in template or "<|python_tag|>" in template or "<|header_start|>" in template
    if own and llama and re.search(r'"parameters\\?":', template) and not re.search("<tool_call>|<function=", template):
        return Syntax("llama", own, "", "", None)
    thoughts = ("<think>", "</think>") if "<think>" in template or "</think>" in template else None
    family, readable = "hermes", False
    if "<tool_call>" in template and "<function=" in template and "<parameter=" in template:
        family, readable = "coder", own
    elif "<tool_call>" in template and "<arg_key>" in template and "<arg_value>" in template:
        family, readable = "glm", own
    elif "<tool_call>" in template and re.search(r'"arguments\\?"', template) and "<function=" not in template:
        readable = own
    return Syntax(family if readable else "hermes", readable, "<tool_call>", "</tool_call>", thoughts)


def new_id() -> str:
    """An id for a call."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))
