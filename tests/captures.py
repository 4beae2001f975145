"""Requests that real clients sent, for replay: their shape, without their prose.

    for capture in captures("/v1/chat/completions"): ...     # with texts of the original lengths

tests/data/captures/<client>.json was made from recordings of unmodified clients, in which every text that a model
would read was replaced by its length.

    python -m tests.captures FOLDER                          # makes it anew, from a folder of recordings
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "captures"
PROSE = frozenset({"content", "text", "description", "instructions", "system", "thinking", "input", "output"})
HEADERS = frozenset({"accept", "content-type", "user-agent", "anthropic-version", "anthropic-beta", "openai-beta"})
CUT = re.compile(r" \u2026\[(\d+) characters in the original\]$")
LENGTH = re.compile(r"^<(\d+) characters>$")


@dataclass(frozen=True)
class Capture:
    """One request. number: its place among those of its client's run."""

    client: str
    number: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any

    def __str__(self) -> str:
        return f"{self.client}-{self.number}"


def captures(path: str) -> list[Capture]:
    """The requests to one path, every text padded back to its length."""
    found = []
    for file in sorted(FOLDER.glob("*.json")):
        requests = [Capture(client=file.stem, **request) for request in json.loads(file.read_text("utf-8"))]
        found += [request for request in requests if request.path == path]
    return [Capture(**vars(request) | {"body": _padded(request.body)}) for request in found]


def _padded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _padded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_padded(item) for item in value]
    length = LENGTH.match(value) if isinstance(value, str) else None
    return ("word " * int(length[1]))[: int(length[1])] if length else value


def _without_prose(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_prose(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_prose(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if cut := CUT.search(value):
        return f"<{cut[1]} characters>"
    return f"<{len(value)} characters>" if key in PROSE else value


def _recorded(file: Path) -> dict[str, Any]:
    request = json.loads(file.read_text("utf-8"))
    return {
        "number": request["n"],
        "method": request["method"],
        "path": request["path"],
        "query": request["query"],
        "headers": {name: value for name, value in request["headers"].items() if name in HEADERS},
        "body": _without_prose(request["body"]),
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for client in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        made = [_recorded(file) for file in sorted(client.glob("*.json"))]
        text = json.dumps(made, ensure_ascii=False, separators=(",", ":"))
        (FOLDER / f"{client.name}.json").write_text(text + "\n", "utf-8")
