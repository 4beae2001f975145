"""What an answer must follow: a response format, calls that were asked for, schemas of strict functions. Pure."""

import re
from typing import NamedTuple

from app.errors import InvalidRequest
from app.llama.grammar import Writer, from_schema, json_object
from app.llama.patterns import literal
from app.llama.syntax import Syntax
from app.messages import Generate, NamedTool, Tool

CALLS = 8  # in one answer, where they are constrained


class Constraint(NamedTuple):
    """A grammar, GBNF. trigger: a regular expression of the whole answer so far; the grammar begins with its group 1.
    None: the grammar holds from the start.
    """

    grammar: str
    trigger: str | None = None


def constraint(request: Generate, syntax: Syntax | None, *, thinking: bool) -> Constraint | None:
    """What the answer to a request must follow; None leaves it free. thinking: the prompt ended within the thoughts.

    Raises InvalidRequest for a schema that cannot be enforced, or a tool choice that names no function.
    """
    forced = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
    tools = _choosable(request)
    if forced and syntax:
        return Constraint(
            _whole(_calls(tools, syntax, parallel=request.parallel_tool_calls), syntax, thinking=thinking)
        )
    if request.response_format is not None:
        schema, param = request.response_format.json_schema, "response_format.json_schema.schema"
        grammar = json_object(param) if schema is None else from_schema(schema, strict=True, param=param)
        if tools and syntax and syntax.opening:
            calls = _calls(tools, syntax, parallel=request.parallel_tool_calls)
            grammar = "\n".join(
                ["root ::= answer | calls", _renamed(grammar, "answer"), _without_common(_renamed(calls, "calls"))]
            )
        return Constraint(_whole(grammar, syntax, thinking=thinking))
    if syntax and any(tool.strict for tool in tools):
        begin = re.escape(syntax.opening) if syntax.opening else r"\{"
        return Constraint(
            _calls(tools, syntax, parallel=request.parallel_tool_calls),
            rf"[\s\S]*?({begin}[\s\S]*)" if syntax.opening else rf"\s*({begin}[\s\S]*)",
        )
    return None


def leaves_no_thoughts(request: Generate) -> bool:
    """Whether a grammar holds from the start, so that the model had better not think aloud."""
    return request.response_format is not None or request.tool_choice not in ("auto", "none")


def _choosable(request: Generate) -> tuple[Tool, ...]:
    """The functions that may be called. Raises InvalidRequest where the choice is none of them."""
    if request.tool_choice == "none":
        return ()
    if isinstance(request.tool_choice, NamedTool):
        chosen = tuple(tool for tool in request.tools if tool.name == request.tool_choice.name)
        if not chosen:
            raise InvalidRequest(
                f"'tool_choice' names '{request.tool_choice.name}', which is not in 'tools'.", "tool_choice"
            )
        return chosen
    if request.tool_choice == "required" and not request.tools:
        raise InvalidRequest("'tool_choice' is 'required', but there are no 'tools' to call.", "tool_choice")
    return request.tools


def _calls(tools: tuple[Tool, ...], syntax: Syntax, *, parallel: bool) -> str:
    """The grammar of calls of these functions, as the family writes them."""
    rules: list[str] = []
    names = []
    for at, tool in enumerate(tools):
        writer = Writer(tool.parameters, strict=tool.strict, param=f"tools[{at}].function.parameters", prefix=f"t{at}-")
        arguments = writer.value({"type": "object"} | tool.parameters, f"tools[{at}].function.parameters")
        names.append(f"t{at}-call")
        rules += [f"{names[-1]} ::= {_call(tool.name, arguments, syntax)}", *writer.rules()]
    one = "(" + " | ".join(names) + ")"
    most = CALLS - 1 if parallel else 0
    roots = {
        "hermes": f'{one} ("\\n" {one}){{0,{most}}}',
        "mistral": f'"[TOOL_CALLS][" {one} (", " {one}){{0,{most}}} "]"',
        "devstral": f"{one} {one}{{0,{most}}}",
        "llama": one,
    }
    return "\n".join([f"root ::= {roots[syntax.family]}", *Writer.common(), *rules])


def _call(name: str, arguments: str, syntax: Syntax) -> str:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    before = {
        "hermes": f'<tool_call>\n{{"name": "{quoted}", "arguments": ',
        "mistral": f'{{"name": "{quoted}", "arguments": ',
        "devstral": f"[TOOL_CALLS]{name}[ARGS]",
        "llama": f'{{"name": "{quoted}", "parameters": ',
    }
    after = {"hermes": "}\n</tool_call>", "mistral": "}", "devstral": "", "llama": "}"}
    return f"{literal(before[syntax.family])} {arguments} {literal(after[syntax.family])}"


def _whole(grammar: str, syntax: Syntax | None, *, thinking: bool) -> str:
    """The grammar, behind the rest of the thoughts where the answer begins within them."""
    if not (thinking and syntax and syntax.thoughts):
        return grammar
    mark = syntax.thoughts[1]
    thought = f"([^{mark[0]}] | {literal(mark[0])} [^/])*"
    inner = _renamed(grammar, "behind")
    return "\n".join([f"root ::= {thought} {literal(mark)} [\\n]{{0,2}} behind", inner])


def _renamed(grammar: str, root: str) -> str:
    return grammar.replace("root ::=", f"{root} ::=", 1)


def _without_common(grammar: str) -> str:
    common = set(Writer.common())
    return "\n".join(line for line in grammar.split("\n") if line not in common)
