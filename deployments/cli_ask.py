"""`mindfu ask` and `mindfu search`: one question to a server, from a terminal or a script."""

import json
import sys
from typing import Annotated, Any

import typer

from app.client import Answer, Client, Piece
from app.errors import InvalidRequest, Unavailable
from deployments.cli_client import TIMEOUT_S, Timeout, Url, connected, harmless, summary
from deployments.cli_options import Json

SHOWN_CHARS = 300  # of a passage; --json has all


def ask(
    question: Annotated[list[str], typer.Argument(help="What to ask; - reads standard input.")],
    *,
    system: Annotated[str | None, typer.Option(help="The system prompt, instead of the server's.")] = None,
    model: Annotated[str | None, typer.Option(help="By its key in `mindfu models`.")] = None,
    session: Annotated[str | None, typer.Option(help="Go on with a session, or begin one of that name.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    tools: Annotated[
        bool | None, typer.Option("--tools/--no-tools", help="Whether the server's tools may be called.")
    ] = None,
    rag: Annotated[bool | None, typer.Option("--rag/--no-rag", help="Whether documents are searched.")] = None,
    url: Url = None,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Ask one question; the answer is written as it comes.

    What is piped in goes with the question: `git diff | mindfu ask "What changed?"`.
    """
    given: dict[str, Any] = {
        "system_prompt": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "enable_tools": tools,
        "rag": rag,
    }
    options = {name: value for name, value in given.items() if value is not None}
    with connected(url, timeout, session=session) as client:
        answer = _answered(client, _question(question), options, quiet=as_json)
    if as_json:
        print(answer.model_dump_json())
        return
    print(flush=True)
    print(harmless(summary(answer)), file=sys.stderr)
    for number, source in enumerate(answer.sources, start=1):
        print(f"[{number}] {harmless(str(source.get('title', '')))}", file=sys.stderr)


def search(
    query: Annotated[list[str], typer.Argument(help="What to look for, by meaning and by words.")],
    *,
    top: Annotated[int, typer.Option(min=1, max=100, help="How many passages at most.")] = 5,
    collection: Annotated[
        list[str] | None, typer.Option(help="Repeat it.", show_default="the server's settings")
    ] = None,
    url: Url = None,
    timeout: Timeout = TIMEOUT_S,
    as_json: Json = False,
) -> int:
    """Find passages of documents, best first.

    Exit status 0: something was found; 1: nothing.
    """
    with connected(url, timeout) as client:
        found = client.search(" ".join(query), top_k=top, collections=collection)
    if as_json:
        print(json.dumps([passage.model_dump() for passage in found]))
    for passage in () if as_json else found:
        where = f", page {passage.page}" if passage.page else ""
        where += f", {passage.heading}" if passage.heading not in ("", passage.title) else ""
        text = " ".join(passage.text.split())
        more = "…" if len(text) > SHOWN_CHARS else ""
        print(harmless(f"{passage.score:.2f}  {passage.title}{where}\n      {text[:SHOWN_CHARS]}{more}"))
    if not found and not as_json:
        print("Nothing was found.", file=sys.stderr)
    return 0 if found else 1


def _question(words: list[str]) -> str:
    asked = " ".join(words)
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    text = piped if asked == "-" else f"{asked}\n\n{piped}" if piped.strip() else asked
    if not text.strip():
        raise InvalidRequest("There is no question.")
    return text


def _answered(client: Client, question: str, options: dict[str, Any], *, quiet: bool) -> Answer:
    for item in client.stream_message(question, **options):
        if isinstance(item, Answer):
            return item
        if not quiet:
            _write(item)
    raise Unavailable("server", "the answer broke off")


def _write(piece: Piece) -> None:
    if piece.kind == "token":
        print(harmless(piece.text), end="", flush=True)
    elif piece.kind == "tool":
        print(f"· {harmless(piece.text)}", file=sys.stderr, flush=True)
