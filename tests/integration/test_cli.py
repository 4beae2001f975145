"""`mindfu serve` refuses early and in plain words."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def serve(tmp_path: Path, *arguments: str, **changes: object) -> subprocess.CompletedProcess[str]:
    """Serve the shipped configuration with some keys changed, written as http_options__host."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config["http_options"]["port"] = probe.getsockname()[1]
    for path, value in changes.items():
        section, key = path.split("__")
        (config["http_options"] if section == "http_options" else config["applications"][0]["args"][section])[key] = (
            value
        )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", "serve", str(file), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
        env={**os.environ, "MINDFU_HOME": str(tmp_path / "home")},
        check=False,
    )


def test_listening_on_the_network_without_a_key_is_refused(tmp_path: Path):
    """Before anything starts, with the variable that is missing."""
    refused = serve(tmp_path, http_options__host="0.0.0.0")
    assert refused.returncode == 2
    assert "MINDFU_API_KEY" in refused.stderr
    assert "Starting Ray" not in refused.stdout


def test_a_taken_port_is_named(tmp_path: Path):
    """Rather than a stack trace of whoever tries to bind it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = serve(tmp_path, http_options__port=port)
    assert refused.returncode == 2
    assert str(port) in refused.stderr


def test_a_model_that_is_not_there_is_named_before_anything_starts(tmp_path: Path):
    """With the path that was looked at, and what to give instead; a program that waits hears nothing."""
    refused = serve(tmp_path, "--json", llm__model="/nowhere/absent.gguf")
    assert refused.returncode == 2
    assert "/nowhere/absent.gguf" in refused.stderr
    assert "Starting Ray" not in refused.stderr
    assert refused.stdout == ""
