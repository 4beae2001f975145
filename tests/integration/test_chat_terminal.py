"""`mindfu chat` in a real terminal, and the commands beside it, against a whole gateway on a real PostgreSQL."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pexpect
import pytest
import uvicorn

from app.messages import Delta, Done, End, Generate, ModelCard, ModelFile, Timings, ToolCallDelta, Usage
from app.settings import FurtherModel, LLMSettings, Settings, ToolSettings
from tests.gateway import MODEL, WINDOW, Echo, whole
from train import convert
from train.lines import Line

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PROMPT = "\x1b[?2004h"  # what a terminal is told when a line is to be typed
ENTER = "\r"
TOOK = Usage(prompt_tokens=7, completion_tokens=3)
TIMINGS = Timings(queued_s=0, prefill_s=0, decode_s=1)


class Chatty(Echo):
    """Says its name and what it was told, with something that a terminal would obey; and there are two of it."""

    async def cards(self) -> tuple[ModelCard, ...]:
        (card,) = await super().cards()
        return (card, card.model_copy(update={"name": "big", "loaded": False}))

    async def files(self) -> tuple[ModelFile, ...]:
        (file,) = await super().files()
        return (file, file.model_copy(update={"name": "big", "exists": False, "recommended": True}))

    async def generate(self, request: Generate):  # type: ignore[no-untyped-def]
        if request.tools and request.messages[-1].role == "user":
            yield Delta("", 1, tool_calls=(ToolCallDelta(0, "{}", id="call_1", name="get_current_directory"),))
            yield Done((End("tool_calls"),), TOOK, TIMINGS)
            return
        users = [message.content for message in request.messages if message.role == "user"]
        if users[-1].startswith("Wait"):
            yield Delta("I am waiting.", 1)
            await asyncio.Event().wait()
        for text in (f"I am {request.model}, ", f"this is message {len(users)}.\x1b[2J", " Goodbye."):
            yield Delta(text, 1)
        yield Done((End("stop"),), TOOK, TIMINGS)


@pytest.fixture
async def url(postgres_home: Path, pool: asyncpg.Pool) -> AsyncIterator[str]:
    """A gateway that listens."""
    further = {"big": FurtherModel(model="/nowhere/big.gguf", description="knows more", recommended=True)}
    llm, tools = LLMSettings(window=WINDOW, models=further), ToolSettings(enabled=True)
    async with whole(postgres_home, Settings(llm=llm, tools=tools), llm=Chatty()) as gateway:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            config = uvicorn.Config(gateway.app, lifespan="off", log_level="warning", access_log=False)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            server.should_exit = True
            await serving


class Terminal:
    """One run of `mindfu chat`."""

    def __init__(self, url: str, folder: Path, *arguments: str) -> None:
        environment = {
            **os.environ, "MINDFU_URL": url, "XDG_CONFIG_HOME": str(folder / "config"), "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = ["-m", "deployments.cli", "chat", *arguments]
        size = {"dimensions": (50, 200), "encoding": "utf-8", "timeout": 60}
        self.child = pexpect.spawn(sys.executable, command, env=environment, cwd=str(folder), **size)
        self.child.expect_exact("/help lists commands")
        self.child.expect_exact(PROMPT)

    def type(self, line: str, *expected: str) -> str:
        """What is shown until the next line can be typed. expected: in this order."""
        self.child.send(line + ENTER)
        shown = ""
        for text in (*expected, PROMPT):
            self.child.expect_exact(text)
            shown += str(self.child.before) + text
        return shown

    def leave(self) -> int:
        """By Ctrl-D."""
        self.child.sendeof()
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus or 0)


def drive(url: str, folder: Path) -> None:
    """Every slash command, as somebody types them."""
    terminal = Terminal(url, folder)
    for name in (
        "/system",
        "/layers",
        "/mem",
        "/tools",
        "/model",
        "/export",
        "/export-ft",
        "/rate",
        "/sources",
        "/new",
    ):
        assert name in terminal.type("/help", "/quit", "Ctrl-D leaves.")
    assert "no answer yet" in terminal.type("/rate up")
    assert "There is no /nonsense" in terminal.type("/nonsense")
    shown = terminal.type("Who are you?", "I am mindfu-demo, this is message 1.", "Goodbye.", "7 + 3 tokens", "CPU")
    assert "\x1b[2J Goodbye" not in shown
    terminal.type("And now?", "this is message 2.", "Goodbye.", "3.0 tokens/s")
    terminal.type("/rate up well said", "Thank you")
    terminal.type("/rate 7", "Rate by up or down")
    terminal.type("/sources", "No source was used.")
    terminal.type("/export talk.txt", "Written to talk.txt.")
    terminal.type("/export talk.json", "Written to talk.json.")
    terminal.type("/export talk.jsonl", "Written to talk.jsonl.")
    terminal.type("/export talk.pdf", "'.pdf' is no format")
    terminal.type("/export-ft", "1 conversations written to training_data.jsonl.")
    terminal.type("/system", "There is no system prompt.")
    terminal.type("/system Be kind.", "The system prompt was set.")
    terminal.type("/system", "Be kind.")
    terminal.type("/system reset", "The system prompt was set.")
    terminal.type("/layers", "mindfu-demo runs on: CPU.")
    terminal.type("/layers 3", "There is no GPU here.")
    terminal.type("/layers many", "-1 for all layers")
    terminal.type("/mem", "memory")
    terminal.type("/tools", "Tools are off.")
    terminal.type("/tools on", "Tools are on.")
    terminal.type("Where are you?", "· get_current_directory()", "this is message 3.", "tools: get_current_directory()")
    terminal.type("/tools off", "Tools are off.")
    assert "*1  mindfu-demo" in terminal.type("/model", "recommended, not here yet")
    terminal.type("2", "big answers;")
    terminal.type("Who are you now?", "I am big, this is message 4.", "Goodbye.")
    terminal.type("/model mindfu-demo", "mindfu-demo answers;")
    terminal.type("/model nobody", "is not served here")
    terminal.type("/new", "A new conversation.")
    terminal.type("Hello?", "this is message 1.", "Goodbye.")
    assert terminal.leave() == 0

    again = Terminal(url, folder, "--session", "work", "--model", "big")
    up = "\x1b[A"
    again.type(up * 2, "A new conversation.")  # /new, from the history of the run before
    again.type("Hi", "I am big, this is message 1.", "Goodbye.")
    again.child.send("Wait for me" + ENTER)
    again.child.expect_exact("I am waiting.")
    again.child.sendintr()
    again.child.expect_exact("Stopped.")
    again.child.expect_exact(PROMPT)
    again.child.send("/qu\t")
    again.child.expect_exact("it")  # by Tab
    again.child.send(ENTER)
    again.child.expect(pexpect.EOF)
    again.child.close()
    assert again.child.exitstatus == 0


async def test_every_slash_command_in_a_real_terminal(url: str, tmp_path: Path):
    """Typed as people do; what it exports is there in all formats, and a line from an earlier run can be had again."""
    await asyncio.to_thread(drive, url, tmp_path)
    assert "user: Who are you?" in (tmp_path / "talk.txt").read_text()
    (talk,) = json.loads((tmp_path / "talk.json").read_text())
    assert [turn["feedback"][0]["comment"] for turn in talk["turns"] if turn["feedback"]] == ["well said"]
    for name in ("talk.jsonl", "training_data.jsonl"):
        (line,) = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        roles = [message["role"] for message in line["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * 2
    (learnt,) = [convert._line(found, convert.Convert()) for found in convert._in(tmp_path / "training_data.jsonl")]
    assert isinstance(learnt, Line)  # what `mindfu train --data` learns from
    history = tmp_path / "config" / "mindfu" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0


async def run(url: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """A command of its own process."""
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "deployments.cli", *arguments], input=given, capture_output=True,
        text=True, timeout=240, cwd=ROOT, env={**os.environ, "MINDFU_URL": url}, check=False,
    )  # fmt: skip


async def test_questions_and_what_was_kept_of_them_from_scripts(url: str, tmp_path: Path):
    """ask, conversations, models and search, by text and by JSON; what is piped in goes with the question."""
    asked = await run(url, "ask", "What", "is this?", "--json", given="a text\n")
    answer: dict[str, Any] = json.loads(asked.stdout)
    assert (asked.returncode, answer["response"][:21]) == (0, "I am mindfu-demo, thi")
    plain = await run(url, "ask", "-", given="Hello\n")
    assert plain.stdout == "I am mindfu-demo, this is message 1.\N{REPLACEMENT CHARACTER}[2J Goodbye.\n"
    listed = json.loads((await run(url, "conversations", "list", "--json")).stdout)
    assert [" ".join(one["title"].split()) for one in listed] == ["Hello", "What is this? a text"]
    shown = await run(url, "conversations", "show", answer["conversation_id"])
    assert "user: What is this?" in shown.stdout
    written = await run(url, "conversations", "export", "-o", str(tmp_path / "all.jsonl"))
    assert (written.returncode, len((tmp_path / "all.jsonl").read_text().splitlines())) == (0, 2)
    models = json.loads((await run(url, "models", "--json")).stdout)
    assert [(model["key"], model["exists"], model["recommended"]) for model in models] == [
        (MODEL, True, False),
        ("big", False, True),
    ]
    nothing = await run(url, "search", "backup", "--json")
    assert (nothing.returncode, nothing.stdout) == (1, "[]\n")


async def test_a_chat_that_is_piped_in_is_answered_line_by_line(url: str):
    """Without a terminal there is no line to edit, and nothing else changes."""
    done = await run(url, "chat", given="One\n/tools\nTwo\n")
    assert done.returncode == 0
    assert "this is message 1." in done.stdout
    assert "Tools are off." in done.stdout
    assert "this is message 2." in done.stdout


async def test_the_documented_program_runs_as_it_stands(url: str, tmp_path: Path):
    """The one of docs/cli.md, but for the address."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE | re.DOTALL)
    program = [sys.executable, "-c", code.replace("http://127.0.0.1:11434", url)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = await asyncio.to_thread(
        subprocess.run, program, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("I am mindfu-demo, this is message 1.")
    assert done.stdout.endswith("\n1 conversations\n")
    assert len((tmp_path / "training_data.jsonl").read_text().splitlines()) == 1
