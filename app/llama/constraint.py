"""What an answer must follow: a response format, calls that were asked for, schemas of strict functions. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

from app.errors import InvalidRequest
from app.llama.grammar import Writer, from_schema, json_object
from app.llama.patterns import literal
from app.llama.syntax import Family, Syntax
from app.llama.xml_grammar import LETTER, Marks, XmlWriter
from app.messages import Generate, NamedTool, Tool

CALLS = 8  # in one answer, where they are constrained


class Frame(NamedTuple):
    """What a family writes around calls that follow each other. first begins with the family's opening mark."""

    first: str
    between: str
    last: str


FRAMES: dict[Family, Frame] = {
    "hermes": Frame("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"),
    "coder": Frame("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"),
    "glm": Frame("<tool_call>", "</tool_call>\n<tool_call>", "</tool_call>"),
    "mistral": Frame("[TOOL_CALLS][", ", ", "]"),
    "devstral": Frame("[TOOL_CALLS]", "[TOOL_CALLS]", ""),
    "llama": Frame("", "", ""),  # which makes one call at once
}
XML: dict[Family, tuple[str, Marks, str]] = {  # behind the name, around parameters, behind them
    "coder": (">\n", Marks("<parameter=", ">\n", "\n</parameter>\n"), "</function>"),
    "glm": ("\n", Marks("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"), ""),
}


@dataclass(frozen=True)
class Calls:
    """The grammar of calls of some functions.

    heads: by function, what comes before its arguments; bodies: the expressions of arguments and what follows them.
    """

    syntax: Syntax
    heads: tuple[str, ...]
    bodies: tuple[str, ...]
    rules: tuple[str, ...]
    more: int  # calls that may follow the first

    def grammar(self) -> str:
        """Of an answer that is nothing but calls."""
        return "\n".join([f"root ::= {literal(self._frame.first)} ({self._any('')}) {self._rest()}", *self.rules])

    def behind(self, begun: str) -> str | None:
        """Of what may follow a call that the model has begun of its own accord: all that it wrote behind the mark.

        None where no call of these functions begins so.
        """
        frame = self._frame.first.removeprefix(self.syntax.opening).strip()
        begun = begun.lstrip()
        if not any((frame + head).startswith(begun) for head in self.heads):
            return None
        space = "" if begun else "[ \\n]{0,2} "
        rest = literal(self._frame.last) if self.syntax.closing else self._rest()
        return "\n".join([f"root ::= {space}({self._any(begun, frame)}) {rest}", *self.rules])

    @property
    def _frame(self) -> Frame:
        return FRAMES[self.syntax.family]

    def _any(self, begun: str, frame: str = "") -> str:
        """One call, of which some letters have been written."""
        ways = (
            f"{literal((frame + head)[len(begun) :])} {body}"
            for head, body in zip(self.heads, self.bodies, strict=True)
            if (frame + head).startswith(begun)
        )
        return " | ".join(ways)

    def _rest(self) -> str:
        more = f"({literal(self._frame.between)} ({self._any('')})){{0,{self.more}}} " if self.more else ""
        return more + literal(self._frame.last)


class Constraint(NamedTuple):
    """grammar: GBNF that holds from the start. calls: what holds in calls that the model begins itself."""

    grammar: str | None
    calls: Calls | None = None


def constraint(request: Generate, syntax: Syntax | None, *, thinking: bool) -> Constraint | None:
    """What the answer to a request must follow; None leaves it free. thinking: the prompt ended within the thoughts.

    Raises InvalidRequest for a schema that cannot be enforced, or a tool choice that names no function.
    """
    forced = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
    tools = _choosable(request)
    more = CALLS - 1 if request.parallel_tool_calls else 0
    if (forced or request.response_format) and request.sampling.ignore_eos:
        message = "'ignore_eos' would go on behind the end of an answer whose form is given. Leave one of them out."
        raise InvalidRequest(message, "ignore_eos")
    if forced and syntax:
        return Constraint(_whole(_calls(tools, syntax, more).grammar(), syntax, thinking=thinking))
    if request.response_format is not None:
        schema, param = request.response_format.json_schema, "response_format.json_schema.schema"
        grammar = json_object(param) if schema is None else from_schema(schema, strict=True, param=param)
        if tools and syntax and syntax.opening:
            calls = _calls(tools, syntax, more).grammar()
            grammar = "\n".join(
                ["root ::= answer | calls", _renamed(grammar, "answer"), _without_common(_renamed(calls, "calls"))]
            )
        return Constraint(_whole(grammar, syntax, thinking=thinking))
    if syntax and any(tool.strict for tool in tools):
        return Constraint(None, _calls(tools, syntax, more))
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


def _calls(tools: tuple[Tool, ...], syntax: Syntax, more: int) -> Calls:
    """The grammar of calls of these functions, as the family writes them."""
    rules = [*Writer.common(), LETTER] if syntax.family in XML else Writer.common()
    heads, bodies = [], []
    for at, tool in enumerate(tools):
        head, body, own = _call(tool, syntax.family, at)
        heads.append(head)
        bodies.append(f"t{at}-body")
        rules += [f"t{at}-body ::= {body}", *own]
    return Calls(syntax, tuple(heads), tuple(bodies), tuple(rules), 0 if syntax.family == "llama" else more)


def _call(tool: Tool, family: Family, at: int) -> tuple[str, str, list[str]]:
    """What comes before the arguments of a call, the expression of what follows, and its rules."""
    param, prefix = f"tools[{at}].function.parameters", f"t{at}-"
    if family in XML:
        behind, marks, last = XML[family]
        xml = XmlWriter(tool.parameters, strict=tool.strict, param=param, prefix=prefix)
        body = f"{xml.parameters(tool.parameters, param, marks)} {literal(last)}"
        return f"{'<function=' if family == 'coder' else ''}{tool.name}{behind}", body, xml.rules()
    writer = Writer(tool.parameters, strict=tool.strict, param=param, prefix=prefix)
    arguments = writer.value({"type": "object"} | tool.parameters, param)
    if family == "devstral":
        return f"{tool.name}[ARGS]", arguments, writer.rules()
    quoted = tool.name.replace("\\", "\\\\").replace('"', '\\"')
    key = "parameters" if family == "llama" else "arguments"
    return f'{{"name": "{quoted}", "{key}": ', f'{arguments} "}}"', writer.rules()


def _whole(grammar: str, syntax: Syntax | None, *, thinking: bool) -> str:
    """The grammar, behind the rest of the thoughts where the answer begins within them."""
    if not (thinking and syntax and syntax.thoughts):
        return grammar
    mark = syntax.thoughts[1]
    begins = "\\[" if mark[0] == "[" else mark[0]
    thought = f"([^{begins}] | [{begins}]+ [^/{begins}])*"
    inner = _renamed(grammar, "behind")
    return "\n".join([f"root ::= {thought} {literal(mark)} [\\n]{{0,2}} behind", inner])


def _renamed(grammar: str, root: str) -> str:
    return grammar.replace("root ::=", f"{root} ::=", 1)


def _without_common(grammar: str) -> str:
    common = set(Writer.common())
    return "\n".join(line for line in grammar.split("\n") if line not in common)
