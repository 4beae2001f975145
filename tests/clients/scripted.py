"""A model of a few kilobytes that does what clients' tests need, through the real engine: it calls a tool, and after
the tool's result it says that it knows.

Its chat template ends a prompt with a cue (what is there to call, was a result told), its vocabulary has each line of
the script as one token, and its weights lead from the cue through the lines. Text is cut by the demo model's tokenizer,
so that an agent's prompt has as many tokens as usual.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.gguf_factory import byte_letters

DEMO = Path(__file__).parents[2] / "app" / "demo" / "mindfu-demo.gguf"
WINDOW = 131_072
WIDTH = 64  # states that the script may have
SURE = 4.0  # times the square root of WIDTH: the logit of what comes next, where all others have 0

HELLO = ("Hello there,", " this is", " MindFu answering.")  # no two tokens may have the same text
KNOWS = ("Now I", " know what", " it says.")
CALLS = {  # by the first of these tools that is offered
    "get_weather": {"city": "Bern"},
    "Bash": {"command": "cat secret.txt", "description": "Read the file"},
    "bash": {"command": "cat secret.txt"},
    "exec_command": {"cmd": "cat secret.txt"},
}
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\n<tools>' }}
{%- for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}
{{- '\n</tools>\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- set told = namespace(result=false) %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{% set told.result = true %}
{%- elif message.role == 'user' and '<system-reminder>' not in message.content %}{% set told.result = false %}
{%- endif %}
{%- endfor %}
{%- set cue = namespace(text='<|hello|>') %}
{%- if told.result %}{% set cue.text = '<|knows|>' %}{% else %}
{%- for name in NAMES | reverse %}{% for tool in tools or [] if tool.function.name == name %}
{%- set cue.text = '<|' + name + '|>' %}{% endfor %}{% endfor %}{% endif %}
{{- cue.text }}{% endif %}"""


def scripted_model(path: Path) -> Path:
    """Make the model. Returns its path."""
    script = {"<|hello|>": list(HELLO), "<|knows|>": list(KNOWS)}
    for name, arguments in CALLS.items():
        begun, rest = f'<tool_call>\n{{"name": "{name}", ', f'"arguments": {json.dumps(arguments)}}}\n</tool_call>'
        script[f"<|{name}|>"] = [begun, rest]
    tokens, types, merges = _vocabulary()
    state = np.zeros(len(tokens), np.int64)  # of each token: 0 for all that is not of the script
    after = {0: tokens.index("<|im_end|>")}  # what each state leads to

    def add(text: str, kind: gguf.TokenType) -> int:
        tokens.append(text if kind != gguf.TokenType.NORMAL else _lettered(text))
        types.append(int(kind))
        return len(tokens) - 1

    states = 0
    for cue, lines in script.items():
        places = [add(cue, gguf.TokenType.CONTROL), *(add(line, gguf.TokenType.NORMAL) for line in lines)]
        state = np.concatenate([state, np.arange(states + 1, states + 1 + len(places))])
        after |= dict(enumerate([*places[1:], tokens.index("<|im_end|>")], start=states + 1))
        states += len(places)
    assert states < WIDTH
    assert len(set(tokens)) == len(tokens)
    embedding = np.eye(WIDTH, dtype=np.float32)[state]
    output = np.zeros((len(tokens), WIDTH), np.float32)
    for number, token in after.items():
        output[token, number] = SURE

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a script")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_chat_template("{%- set NAMES = " + json.dumps(list(CALLS)) + " %}" + TEMPLATE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    for name, weights in _weights(embedding, output).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary() -> tuple[list[str], list[int], list[str]]:
    fields = gguf.GGUFReader(DEMO).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    return list(tokens), list(types), list(merges)


def _lettered(text: str) -> str:
    letters = byte_letters()
    return "".join(letters[byte] for byte in text.encode())


def _weights(embedding: NDArray[np.float32], output: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """One layer that adds nothing."""
    square, wide = np.zeros((WIDTH, WIDTH), np.float32), np.zeros((32, WIDTH), np.float32)
    ones = np.ones(WIDTH, np.float32)
    layer = {f"attn_{name}": square for name in ("q", "k", "v", "output")}
    layer |= {"attn_norm": ones, "ffn_norm": ones, "ffn_gate": wide, "ffn_up": wide, "ffn_down": wide.T.copy()}
    layer = {f"blk.0.{name}.weight": weights for name, weights in layer.items()}
    return {"token_embd.weight": embedding, "output.weight": output, "output_norm.weight": ones, **layer}
