"""`mindfu chat`: a conversation with a server. The line has a history across runs, and completes commands."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from app.client import Client
from deployments.cli_client import TIMEOUT_S, Timeout, Url, connected, harmless
from deployments.cli_lines import converse
from deployments.cli_repl import Repl

Read = Callable[[str], str]


def chat(
    *,
    session: Annotated[
        str | None, typer.Option(help="Go on with a session, or begin one of that name.", show_default="a new one")
    ] = None,
    model: Annotated[str | None, typer.Option(help="For this chat only; /model is for everybody.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt of this chat only.")] = None,
    tools: Annotated[
        bool | None, typer.Option("--tools/--no-tools", help="Whether the server's tools may be called.")
    ] = None,
    rag: Annotated[bool | None, typer.Option("--rag/--no-rag", help="Whether documents are searched.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    url: Url = None,
    timeout: Timeout = TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object for each line of standard input.")] = False,
) -> int:
    """Talk to a server. /help lists what else can be typed.

    Exit status with --json: 1 where a line could not be answered.
    """
    given: dict[str, Any] = {
        "model": model,
        "system_prompt": system,
        "enable_tools": tools,
        "rag": rag,
        "temperature": temperature,
    }
    options = {name: value for name, value in given.items() if value is not None}
    console = Console(highlight=False, stderr=as_json)
    with connected(url, timeout, session=session) as client:
        _greet(client, console)
        if as_json:
            return converse(client, _piped, options)
        read = line_of(lambda: [f"/{name}" for name in repl.commands]) if sys.stdin.isatty() else _piped
        repl = Repl(client, console, read, options)
        while repl.turn():
            pass
    return 0


def line_of(words: Callable[[], list[str]]) -> Read:
    """Reads lines from the terminal. words: that Tab completes at the beginning of one."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(_history())),
        completer=WordCompleter(words, sentence=True),
        complete_while_typing=False,
        key_bindings=bindings,
    )
    return session.prompt


def _history() -> Path:
    """The file that remembers what was typed, for this user's eyes only."""
    file = Path(typer.get_app_dir("mindfu")) / "chat_history"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.touch(0o600)
    return file


def _piped(_: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _greet(client: Client, console: Console) -> None:
    """Say who answers, and what is wrong with the server. Raises where there is none."""
    health = client.health()
    console.print(Text(f"MindFu {health.version} at {client.url}, model {health.model_key}. /help lists commands."))
    if health.status != "ok":
        wrong = [f"{part}: {state}" for part, state in health.parts.items() if state != "ok"]
        console.print(Text(harmless(f"The server is {health.status}. {'; '.join(wrong)}"), style="yellow"))
