"""`mindfu doctor`: looks at everything that a server needs, and says what to do where something is wrong."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from app import checkup
from app.checkup import Finding
from app.errors import Misconfigured
from app.settings import IMPORT_PATH, Secrets, Settings, home
from deployments import preflight
from deployments.cli_client import harmless
from deployments.cli_options import Json
from deployments.cli_serve import DEFAULT
from deployments.profiles import resolved

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failure": ("✗", "red")}


def doctor(
    config: Annotated[Path, typer.Argument(help="The configuration to look at.")] = DEFAULT, *, as_json: Json = False
) -> int:
    """Check Python, llama.cpp, GPUs, memory, disk, the port, stores and models; say what to do.

    Nothing is changed. Exit status 0: a server can run, or runs well; 1: something is wrong.
    """
    found = list[Finding]()
    console = Console(highlight=False)
    for finding in examined(config):
        found.append(finding)
        if not as_json:
            _show(console, finding)
    wrong = [finding for finding in found if finding.state == "failure"]
    if as_json:
        print(json.dumps({"ok": not wrong, "findings": [finding._asdict() for finding in found]}))
    else:
        print(f"\n{len(wrong)} problem(s)." if wrong else "\nAll is well.")
    return 1 if wrong else 0


def examined(config: Path) -> Iterator[Finding]:
    """All findings, one after the other, because some take seconds."""
    secrets, folder = Secrets.from_env(), home()
    yield checkup.python()
    yield from _safely("llama.cpp", lambda: [checkup.llama_cpp()])
    yield from _safely("GPU", checkup.graphics)
    yield from _safely("machine", lambda: checkup.machine(folder))
    told = list(_configuration(config, secrets, folder))
    yield from told
    if told[-1].state == "ok" and os.environ.get("RAY_ADDRESS", "local") == "local":  # to a cluster, nodes may come
        yield from _safely("room", lambda: [_room(config)])
    settings, host, port = _read(config)
    around = list(_safely("port", lambda: checkup.server(host, port)))
    yield from around
    running = any("answers" in finding.told for finding in around)
    yield from _safely("PostgreSQL", lambda: [checkup.postgres(secrets, folder)])
    yield from _safely("Qdrant", lambda: [checkup.qdrant(secrets)])
    yield from _safely("model", lambda: checkup.models(settings.llm, folder, running=running))
    yield from _safely("embedding model", lambda: [checkup.embedding(settings.embedding.model)])
    yield checkup.learning()


def _configuration(config: Path, secrets: Secrets, folder: Path) -> Iterator[Finding]:
    if not config.exists():
        remedy = f"Run it where your {DEFAULT} lies, or name the file: `mindfu doctor CONFIG`. Defaults are used below."
        yield Finding("configuration", "failure", f"there is no {config}", remedy)
        return
    from deployments.config import problems  # imports Ray

    found = problems(config, secrets, folder)
    for problem in found:
        yield Finding("configuration", "failure", problem, f"Correct it in {config}.")
    if not found:
        yield Finding("configuration", "ok", str(config))


def _room(config: Path) -> Finding:
    """Whether the parts find their CPUs and GPUs here."""
    whole = resolved(config)
    try:
        preflight.require_room(whole, preflight.here())
    except Misconfigured as error:
        return Finding("room", "failure", error.problem, error.remedy)
    wanted = (f"{amount:g} {name}" for name, amount in sorted(preflight.wants(whole).items()))
    return Finding("room", "ok", f"the parts ask for {', '.join(wanted)}, which is here")


def _read(config: Path) -> tuple[Settings, str, int]:
    """Settings, host and port of a configuration; the defaults where it is broken, which was told already."""
    try:
        parsed: Any = resolved(config)
        http = parsed.get("http_options") or {}
        ours = (one for one in parsed["applications"] if one.get("import_path") == IMPORT_PATH)
        settings = Settings.model_validate(next(ours).get("args") or {})
        return settings, str(http.get("host", "127.0.0.1")), int(http.get("port", 8000))
    except (
        Misconfigured,
        ValidationError,
        LookupError,
        AttributeError,
        TypeError,
        ValueError,
        StopIteration,
    ):
        return Settings(), "127.0.0.1", 11434


def _safely(what: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check. One that breaks is a finding, and the others go on."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - the edge of a loop over checks: the report is where this belongs
        told = f"it could not be looked at: {type(error).__name__}: {error}"
        yield Finding(what, "failure", told, "Run `make install` again; if that does not help, this is a bug of ours.")


def _show(console: Console, finding: Finding) -> None:
    mark, colour = MARKS[finding.state]
    console.print(Text.assemble((mark, colour), f" {harmless(finding.what)}: {harmless(finding.told)}"), soft_wrap=True)
    if finding.remedy:
        console.print(
            Text(f"  → {harmless(finding.remedy)}", style="bold" if finding.state == "failure" else ""), soft_wrap=True
        )
    sys.stdout.flush()
