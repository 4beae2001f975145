"""Install the clients that are no dependency of ours, each kind in an environment of its own.

    python -m tests.clients.install          # into ~/.cache/mindfu-clients, or where MINDFU_CLIENTS says

What cannot be installed here (no npm, no Python 3.12 for Vibe) is left out, and its tests are skipped with the reason.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("MINDFU_CLIENTS", Path.home() / ".cache" / "mindfu-clients"))
PYTHON = (
    "openai==3.52.0", "anthropic==2.11.0", "llm==0.36", "langchain-openai==1.7.3", "langchain-anthropic==1.7.7",
)  # fmt: skip
LLAMA_INDEX = ("llama-index-llms-openai-like==0.8.1",)  # wants an older openai
VIBE = ("mistral-vibe==3.0.2",)
NODE = (
    "openai@6.49.0", "@anthropic-ai/sdk@1.11.0", "@anthropic-ai/claude-code@2.1.197", "@openai/codex@0.169.0",
)  # fmt: skip
UV = Path(sys.executable).with_name("uv")
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


def main() -> int:
    """Install all of them. Returns how many kinds could not be."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm") or "npm"
    done = (
        _python("python", f"{sys.version_info[0]}.{sys.version_info[1]}", PYTHON),
        _python("llama-index", f"{sys.version_info[0]}.{sys.version_info[1]}", LLAMA_INDEX),
        _python("vibe", "3.12", VIBE),
        _run([npm, "install", "--prefix", str(FOLDER / "node"), "--no-audit", "--no-fund", *NODE]),
    )
    return done.count(False)


def _python(name: str, version: str, packages: tuple[str, ...]) -> bool:
    """The Python is found or downloaded by uv."""
    folder = FOLDER / name
    made = folder.exists() or _run([str(UV), "venv", "--quiet", "--python", version, str(folder)])
    return made and _run([str(UV), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *packages])


def _run(command: list[str]) -> bool:
    try:
        return subprocess.run(command, check=False, env=os.environ | {"PATH": _path()}).returncode == 0
    except OSError as exc:
        print(exc, file=sys.stderr)
        return False


def _path() -> str:
    """Where programs are looked for: as usual, and among pyenv's Pythons, which are hidden until one is chosen."""
    return os.pathsep.join([os.environ["PATH"], *map(str, sorted(PYENV.glob("*/bin")))])


if __name__ == "__main__":
    sys.exit(main())
