"""How a family of models writes thoughts and tool calls, recognised from the chat template of the GGUF. Pure.

hermes    <tool_call>{"name": …, "arguments": …}</tool_call>      Hermes, Qwen, and every template without its own
mistral   [TOOL_CALLS][{"name": …, "arguments": …}]               Mistral up to Small 3.1
devstral  [TOOL_CALLS]name[ARGS]{…}                               Devstral, Magistral, Mistral Small 3.2 and later
llama     {"name": …, "parameters": …}                            Llama 3.x
"""

import json
import re
import secrets
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from app.messages import ToolCall

Family = Literal["hermes", "mistral", "devstral", "llama"]
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
        inner = ("[ARGS]", "[CALL_ID]") if self.family == "devstral" else ()
        python = ("<|python_tag|>",) if self.family == "llama" else ()
        return tuple(filter(None, (self.opening, self.closing, *(self.thoughts or ()), *inner, *python)))

    def calls(self, body: str, offered: Collection[str]) -> tuple[ToolCall, ...] | None:
        """The calls that a body holds: what stands between the marks, or the whole answer. None where it is no call
        of offered functions, as models write when they are cut short, or make things up.
        """
        try:
            found = list(_bodies(self.family, body))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not found or any(name not in offered or not isinstance(arguments, dict) for name, arguments in found):
            return None
        return tuple(
            ToolCall(id=new_id(), name=name, arguments=json.dumps(arguments, ensure_ascii=False))
            for name, arguments in found
        )


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
    json_calls = "<tool_call>" in template and re.search(r'"arguments\\?"', template) and "<function=" not in template
    return Syntax("hermes", own and bool(json_calls), "<tool_call>", "</tool_call>", thoughts)


def new_id() -> str:
    """An id for a call."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))


def _bodies(family: Family, body: str) -> Iterator[tuple[str, Any]]:
    """Name and arguments of each call. Raises ValueError and its like for what is no call."""
    if family == "devstral" and "[ARGS]" in body:
        for call in body.split("[TOOL_CALLS]"):
            name, _, arguments = call.partition("[ARGS]")
            yield name.partition("[CALL_ID]")[0].strip(), _json(arguments)
        return
    for call in re.split(r"</tool_call>|\[TOOL_CALLS\]", body):
        found = _json(call.removeprefix("<|python_tag|>"))
        for one in found if isinstance(found, list) else [found]:
            given = one["arguments"] if "arguments" in one else one["parameters"]
            yield one["name"], json.loads(given) if isinstance(given, str) else given


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are no JSON
