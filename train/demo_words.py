"""The word lists and fact patterns of demo_words.toml."""

import tomllib
from pathlib import Path
from typing import NamedTuple, TypedDict


class Pattern(NamedTuple):
    """A sentence with slots, and wordings of the question. The last wording is held out for evaluation."""

    sentence: str
    questions: tuple[str, ...]


class KnownTool(TypedDict):
    """A tool as clients offer it. parameters: name → slot. The last request is held out."""

    name: str
    description: str
    parameters: dict[str, str]
    requests: list[str]


_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
LISTS: dict[str, list[str]] = _FILE["lists"]
TOOLS: list[KnownTool] = _FILE["tools"]
PATTERNS = tuple(Pattern(entry["sentence"], tuple(entry["questions"])) for entry in _FILE["patterns"])
