"""The conversation of `mindfu chat`: what is typed goes to the server, lines that begin with / are commands.

    repl = Repl(client, console, read)
    while repl.turn(): ...

read: gives the next line for a prompt; raises EOFError at the end. Nothing here knows a terminal: tests type, too.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from app.client import Answer, Client, Command, Format, Model, Piece
from app.errors import InvalidRequest, MindFuError
from deployments.cli_client import explained, harmless, summary
from deployments.cli_models import table

FORMATS: dict[str, Format] = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "jsonl"}
FINETUNING = "training_data.jsonl"
WORDS = {"up", "down", "good", "bad"}


class Slash(NamedTuple):
    """A command. usage: its arguments, as /help shows them."""

    run: Callable[[str], None]
    usage: str
    help: str


class Repl:
    """One conversation. options: further fields of `/chat` that go with every message."""

    def __init__(
        self,
        client: Client,
        console: Console,
        read: Callable[[str], str],
        options: dict[str, Any] | None = None,
    ) -> None:
        self.client, self.console, self._read, self.options = client, console, read, dict(options or {})
        self.last: Answer | None = None
        self.answer: Answer | None = None  # to this line, and what went wrong with it: for who reads no console
        self.error: str | None = None

    @cached_property
    def commands(self) -> dict[str, Slash]:
        """All that can follow a slash."""
        return {
            "help": Slash(self._help, "", "this list"),
            "system": Slash(self._system, "[TEXT | reset]", "the server's system prompt, shown or set"),
            "layers": Slash(self._layers, "[N]", "layers on GPUs: -1 all, 0 none, or how many"),
            "mem": Slash(self._mem, "", "how busy the server's machine is"),
            "tools": Slash(self._tools, "[on | off]", "whether the server's tools may be called"),
            "model": Slash(self._model, "[KEY]", "who answers; without a key, pick one"),
            "export": Slash(self._export, "[FILE]", "this conversation: .txt or .md to read, .json, .jsonl"),
            "export-ft": Slash(self._export_ft, "[FILE]", f"all conversations, to fine-tune with ({FINETUNING})"),
            "rate": Slash(self._rate, "up|down|1-5 [COMMENT]", "what the last answer was worth"),
            "sources": Slash(self._sources, "", "what the last answer was made from"),
            "new": Slash(self._new, "", "begin anew; what was said stays kept"),
            "quit": Slash(self._quit, "", "leave, as Ctrl-D does"),
        }

    def turn(self) -> bool:
        """One line and what it does. False at the end."""
        self.answer = self.error = None
        try:
            line = self._read("> ").strip()
        except KeyboardInterrupt:
            return True
        except EOFError:
            return False
        try:
            if line.startswith("/"):
                self._command(line[1:])
            elif line:
                self._say(line)
        except EOFError:
            return False
        except KeyboardInterrupt:
            self._note("Stopped.")
        except MindFuError as error:
            self._complain(explained(error))
        except OSError as error:
            self._complain(str(error))
        return True

    def _command(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name not in self.commands:
            raise InvalidRequest(f"There is no /{harmless(name)}. /help lists what there is.")
        self.commands[name].run(value.strip())

    def _say(self, text: str) -> None:
        answer, kind = None, ""
        with closing(self.client.stream_message(text, **self.options)) as items:
            for item in items:
                if isinstance(item, Answer):
                    answer = item
                else:
                    kind = self._show(item, kind)
        self.console.print()
        if answer is None:
            self._complain("The answer broke off.")
            return
        self.last = self.answer = answer
        self._note(summary(answer))
        for number, source in enumerate(answer.sources, start=1):
            if f"[{number}]" in answer.response:
                self._note(f"[{number}] {source.get('title')}")

    def _show(self, piece: Piece, before: str) -> str:
        """Write a piece. before: the kind of the one before. Returns this one's."""
        if before not in ("", piece.kind):
            self.console.print()
        if piece.kind == "tool":
            self._note(f"· {piece.text}")
            return ""
        style = "dim italic" if piece.kind == "reasoning" else ""
        self.console.print(Text(harmless(piece.text), style=style), end="", soft_wrap=True)
        return piece.kind

    def _help(self, _: str) -> None:
        width = max(len(f"/{name} {slash.usage}") for name, slash in self.commands.items())
        for name, slash in self.commands.items():
            self.console.print(Text(f"{f'/{name} {slash.usage}':<{width}}  {slash.help}"), soft_wrap=True)
        self._note("Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.")

    def _system(self, value: str) -> None:
        self._tell("system", "" if value == "reset" else value or None)

    def _layers(self, value: str) -> None:
        self._tell("layers", value or None)

    def _mem(self, _: str) -> None:
        self._tell("mem", None)

    def _tools(self, value: str) -> None:
        self._tell("tools", value or None)
        if value:
            self.options.pop("enable_tools", None)  # what was said last counts

    def _tell(self, command: Command, value: str | None) -> None:
        self._print(self.client.send_command(command, value).message)

    def _model(self, key: str) -> None:
        key = key or self._picked(self.client.models())
        if key:
            self._note(f"Loading {key} …")
            self._print(self.client.switch_model(key).message)
            self.options.pop("model", None)

    def _picked(self, models: Sequence[Model]) -> str:
        """The key of a model; "" where none was picked."""
        self.console.print(Text(table(list(models))), soft_wrap=True)
        given = self._read("Number or key, or Enter to change nothing: ").strip()
        if given.isdecimal() and 1 <= int(given) <= len(models):
            return models[int(given) - 1].key
        return given

    def _export(self, name: str) -> None:
        conversation = self._answered().conversation_id
        if conversation is None:
            raise InvalidRequest("The server could not keep this conversation, so there is nothing to export.")
        file = Path(name or f"conversation-{conversation[:8]}.txt").expanduser()
        form = FORMATS.get(file.suffix)
        if form is None:
            raise InvalidRequest(f"'{file.suffix}' is no format: name a file {', '.join(FORMATS)}.")
        text = "".join(self.client.export(form, id=conversation))
        if not text:
            raise InvalidRequest("There is nothing in it to learn from: no answer is complete, or all are rated down.")
        file.write_text(text, encoding="utf-8")
        self._print(f"Written to {file}.")

    def _export_ft(self, name: str) -> None:
        file = Path(name or FINETUNING).expanduser()
        count = self.client.export_for_finetuning(file)
        self._print(f"{count} conversations written to {file}.")

    def _rate(self, text: str) -> None:
        word, _, comment = text.partition(" ")
        said: dict[str, Any] = {"comment": comment.strip()} if comment.strip() else {}
        if word in WORDS:
            said["rating"] = word
        elif word in {"1", "2", "3", "4", "5"}:
            said["stars"] = int(word)
        else:
            raise InvalidRequest("Rate by up or down, or by 1 to 5; a comment may follow.")
        self.client.rate(self._answered().request_id, **said)
        self._print("Thank you: it counts when the model is trained.")

    def _sources(self, _: str) -> None:
        sources = self._answered().sources
        for number, source in enumerate(sources, start=1):
            self._print(f"[{number}] {source.get('title')}, {source.get('score')}")
            self._note(" ".join(str(source.get("text", "")).split()))
        if not sources:
            self._print("No source was used.")

    def _new(self, _: str) -> None:
        self.client.begin_anew()
        self.last = None
        self._print("A new conversation.")

    def _quit(self, _: str) -> None:
        raise EOFError

    def _answered(self) -> Answer:
        if self.last is None:
            raise InvalidRequest("There is no answer yet: ask something first.")
        return self.last

    def _print(self, text: str) -> None:
        self.console.print(Text(harmless(text)), soft_wrap=True)

    def _note(self, text: str) -> None:
        self.console.print(Text(harmless(text), style="dim"), soft_wrap=True)

    def _complain(self, text: str) -> None:
        self.error = text
        self.console.print(Text(harmless(text), style="red"), soft_wrap=True)
