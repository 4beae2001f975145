"""A folder that vLLM serves as it is: `vllm serve --config vllm.yaml`, in the folder.

The merged model with its tokenizer, template and stop tokens, and the options of `vllm serve` that follow from them.
What this does not do: run vLLM.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from app.errors import InvalidRequest

CONFIG, GENERATION, SETTINGS = "config.json", "generation_config.json", "vllm.yaml"
NEEDED = (CONFIG, "tokenizer.json", "tokenizer_config.json")
PARSERS = (("[TOOL_CALLS]", "mistral"), ("<tool_call>", "hermes"), ("<|python_tag|>", "llama3_json"))
"""Of tool calls, by what the chat template writes: the names that vLLM has for them."""


def complete(folder: Path, name: str, window: int | None) -> None:
    """Write what a merged model lacks for vLLM. name: that clients send; window: tokens, None takes the model's own.

    Raises InvalidRequest where a file is missing that nobody can make up.
    """
    missing = [file for file in NEEDED if not (folder / file).is_file()]
    if missing:
        message = f"{folder} has no {', '.join(missing)}: give a base with its tokenizer."
        raise InvalidRequest(message, "formats.formats")
    config = _read(folder / CONFIG)
    if not (folder / GENERATION).exists():
        ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
        (folder / GENERATION).write_text(json.dumps(ends, indent=1) + "\n")
    (folder / SETTINGS).write_text(yaml.safe_dump(settings(folder, name, window), sort_keys=False))


def settings(folder: Path, name: str, window: int | None) -> dict[str, Any]:
    """The options of `vllm serve`, by their names on the command line."""
    longest: int | None = _read(folder / CONFIG).get("max_position_embeddings")
    options: dict[str, Any] = {"model": ".", "served-model-name": name}
    if window or longest:
        options["max-model-len"] = min(told for told in (window, longest) if told)
    parser = next((parser for mark, parser in PARSERS if mark in _template(folder)), None)
    return options | ({"enable-auto-tool-choice": True, "tool-call-parser": parser} if parser else {})


def _template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    told = _read(folder / "tokenizer_config.json").get("chat_template") or ""
    return told if isinstance(told, str) else json.dumps(told)


def _read(file: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return told
