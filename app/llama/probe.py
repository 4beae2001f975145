"""Try a model in a child process, before a replica depends on it.

A llama.cpp that does not fit the machine dies of a signal at its first decode (gcc 12 with AMX does that, ggml-org/
llama.cpp#20824). In a child that is an error message; in a replica it would be an endless series of restarts.
"""

import signal
import subprocess
import sys
from pathlib import Path

from app.errors import Misconfigured

TIMEOUT_S = 120.0
REBUILD = "Build llama-cpp-python for this machine again, with AMX off (see the README), or use another GGUF"


def probe(path: Path) -> None:
    """Load the model and decode a few tokens in a child. Raises Misconfigured where that fails."""
    command = [sys.executable, "-m", "app.llama.probe", str(path)]
    root = Path(__file__).parents[2]  # where `app` is found, wherever this process was started
    try:
        child = subprocess.run(  # noqa: S603 — our own interpreter on our own module
            command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Misconfigured("llm.model", f"a trial decode did not end within {TIMEOUT_S:.0f} s", REBUILD) from error
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise Misconfigured("llm.model", f"llama.cpp dies of {name} on its first decode", REBUILD)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Misconfigured("llm.model", f"a trial of it failed: {reason}", "Use another GGUF")


def main(path: str) -> int:
    """The child's side: 0 where decoding works, else the last line on stderr says why not."""
    import numpy as np

    from app.llama.context import Context
    from app.llama.model import Model

    try:
        context = Context(Model(Path(path)), cells=256, sequences=1, batch_tokens=32, threads=1)
    except Misconfigured as error:
        sys.stderr.write(error.problem)
        return 1
    context.add(0, np.zeros(8, np.int32), 0, outputs=1)
    return context.decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
