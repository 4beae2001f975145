"""ChatML as the demo model reads and writes it: the template that travels in the GGUF, and its tokens in training.

`tokens` and `TEMPLATE` must render alike; a test holds them together.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from train import tokenizer as vocabulary

# Hermes and Qwen2.5 word the tools like this, so that clients and parsers made for them understand the demo model too.
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nCall one of these functions when it fits.\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nA call looks like this: <tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call>\
<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or message.role == 'system' and not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- if call.function %}{%- set call = call.function %}{%- endif %}
{%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


TOOLS = """\
# Tools

Call one of these functions when it fits.
<tools>
{tools}
</tools>
A call looks like this: <tool_call>
{{"name": <name>, "arguments": <object>}}
</tool_call>"""


def offer(definitions: Sequence[str], system: str = "") -> str:
    """The system prompt that offers tools, as the template writes it. definitions: JSON texts."""
    block = TOOLS.format(tools="\n".join(definitions))
    return f"{system}\n\n{block}" if system else block


class Turn(NamedTuple):
    """One message: who and what."""

    role: str
    content: str


class Rendered(NamedTuple):
    """Tokens of a chat. contents: for each turn, the index of its content's first token, and the content's encoding."""

    tokens: list[int]
    contents: list[tuple[int, Encoding]]


def render(tokenizer: Tokenizer, turns: Sequence[Turn]) -> Rendered:
    """Tokenise turns. What the template writes is special where it says so; what people wrote never is."""
    start, end = (vocabulary.number(tokenizer, token) for token in (vocabulary.TURN_START, vocabulary.TURN_END))
    newline = vocabulary.encode(tokenizer, "\n").ids
    tokens: list[int] = []
    contents = []
    for turn in turns:
        tokens += [start, *vocabulary.encode(tokenizer, f"{turn.role}\n").ids]
        encoding = vocabulary.encode(tokenizer, turn.content)
        contents.append((len(tokens), encoding))
        tokens += [*encoding.ids, end, *newline]
    return Rendered(tokens, contents)


def opening(tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the assistant speaks."""
    return [vocabulary.number(tokenizer, vocabulary.TURN_START), *vocabulary.encode(tokenizer, "assistant\n").ids]
