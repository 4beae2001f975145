"""Coding agents, unmodified: asked for a file, each reads it with its own tool and answers."""

import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT, Server
from tests.clients.conftest import SECRET, run
from tests.clients.install import FOLDER

pytestmark = pytest.mark.clients

ASKED = "Read secret.txt and tell me the secret word."
KNOWS = "Now I know what it says."
CODEX = """\
model = "mindfu-demo"
model_provider = "mindfu"
[model_providers.mindfu]
name = "MindFu"
base_url = "URL/v1"
wire_api = "responses"
"""
VIBE = """\
active_model = "mindfu"
enable_telemetry = false
enable_update_checks = false
[[providers]]
name = "mindfu"
api_base = "URL/v1"
api_key_env_var = "MINDFU_KEY"
api_style = "openai"
backend = "generic"
[[models]]
name = "mindfu-demo"
provider = "mindfu"
alias = "mindfu"
"""


def test_claude(server: Server, project: Path):
    """Claude CLI, through /v1/messages."""
    env = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": "mindfu-demo",
        "ANTHROPIC_SMALL_FAST_MODEL": "mindfu-demo",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    claude = FOLDER / "node/node_modules/.bin/claude"
    assert run([claude, "-p", ASKED, "--allowedTools", "Bash"], project, env).strip() == KNOWS
    assert SECRET in told(server)


def test_codex(server: Server, project: Path):
    """Codex CLI, through /v1/responses."""
    home = project.parent / "codex"
    home.mkdir()
    (home / "config.toml").write_text(CODEX.replace("URL", server.url))
    codex = FOLDER / "node/node_modules/.bin/codex"
    flags = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    assert run([codex, "exec", *flags, ASKED], project, {"CODEX_HOME": str(home)}).strip() == KNOWS
    assert SECRET in told(server)


def test_vibe(server: Server, project: Path):
    """Mistral Vibe, through /v1/chat/completions. What it logs can be imported, and is known where it was said."""
    home = project.parent / "vibe"
    home.mkdir()
    (home / "config.toml").write_text(VIBE.replace("URL", server.url))
    vibe = FOLDER / "vibe/bin/vibe"
    flags = ["--auto-approve", "--trust", "--max-turns", "5"]
    env = {"VIBE_HOME": str(home), "MINDFU_KEY": "none", "MISTRAL_API_KEY": "none"}
    assert KNOWS in run([vibe, "-p", ASKED, *flags], project, env)
    assert SECRET in told(server)
    command = [sys.executable, "-m", "deployments.cli", "ingest-logs", home / "logs/session"]
    said = run(command, ROOT, {"MINDFU_HOME": str(server.home)})
    assert "new: 0 turns in 0 conversations; known already: 2 turns" in said
    said = run([*command, "--tenant", "other"], ROOT, {"MINDFU_HOME": str(server.home)})
    assert "sessions read: 1 vibe" in said
    assert "in 1 conversations" in said


def told(server: Server) -> str:
    """What the latest conversation holds: the tool ran, and its result reached the model."""
    with server.http() as http:
        latest = http.get("/v1/conversations", params={"limit": 1}).json()["data"][0]["id"]
        return http.get(f"/v1/conversations/{latest}").text
