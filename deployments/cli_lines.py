"""`mindfu chat --json`: the same conversation for programs, an object on a line for each line that they write.

{"line": "Hello", "answer": {…}}      a question, with all that the server tells of its answer
{"line": "/mem", "told": "…"}         a command
{"line": "/rate 9", "error": "…"}     either of them, where it failed; the next line is read all the same
"""

import io
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console

from app.client import Client
from deployments.cli_repl import Repl


def converse(client: Client, read: Callable[[str], str], options: dict[str, Any]) -> int:
    """Until the lines end. read, options: as of Repl. Returns the exit status: 1 where a line failed."""
    shown, lines, status = io.StringIO(), list[str](), 0

    def noted(prompt: str) -> str:
        lines.append(read(prompt))
        return lines[-1]

    repl = Repl(client, Console(file=shown, highlight=False), noted, options)
    while repl.turn():
        if lines and (line := lines[0].strip()):
            told = _told(repl, shown.getvalue())
            status |= "error" in told
            print(json.dumps({"line": line, **told}), flush=True)
        lines.clear()
        shown.seek(0)
        shown.truncate()
    return status


def _told(repl: Repl, shown: str) -> dict[str, Any]:
    if repl.error:
        return {"error": repl.error}
    if repl.answer:
        return {"answer": repl.answer.model_dump(mode="json")}
    return {"told": shown.rstrip("\n")}
