"""Install each extra from uv.lock into an environment of its own, and import what it promises: `make extras`.

    python -m tests.extras             # all of them: gigabytes for cuda and vllm
    python -m tests.extras s3 train    # these

Exit status 1: one could not be installed, or imported.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = str(Path(sys.executable).parent / "uv")
TORCH = "torch==2.13.0"
PROMISES = {
    "s3": ("s3fs",),
    "aws": ("boto3",),
    "gcp": ("googleapiclient.discovery", "google.auth"),
    "train": ("peft", "trl", "bitsandbytes", "mlflow", "datasketch", "presidio_analyzer", "gguf", "ray.train"),
    "cpu": ("torch",),
    "cuda": ("torch", "triton"),
    "vllm": ("vllm", "bitsandbytes"),
    "awq": ("llmcompressor",),
    "dvc": ("dvc.api",),
}
FROM_THE_LOCK = {"cuda", "vllm"}  # PyTorch, too; for the others it is what `make install` would take
WITH_TORCH = {"cpu", "train", "awq"}


def main(names: list[str]) -> int:
    """Exit status."""
    wrong = [extra for extra in names or PROMISES if not works(extra)]
    sys.stdout.write(f"extras: {', '.join(wrong)} failed\n" if wrong else "extras: all of them work\n")
    return 1 if wrong else 0


def works(extra: str) -> bool:
    """Whether it can be installed and imported, in a folder that is removed again."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"
        before = [[UV, "venv", "--quiet", "--clear", "--python", sys.executable, folder]]
        if extra in WITH_TORCH:
            build = [] if os.environ.get("UV_FIND_LINKS") else ["--torch-backend=cpu"]
            before.append([UV, "pip", "install", "--quiet", "--python", python, *build, TORCH])
        imports = f"import {', '.join(PROMISES[extra])}; print('{extra}: imports {', '.join(PROMISES[extra])}')"
        steps = [*before, [*sync(extra), "--quiet"], [python, "-W", "ignore", "-c", imports]]
        environment = os.environ | {"UV_PROJECT_ENVIRONMENT": folder}
        return all(subprocess.run(step, cwd=ROOT, env=environment, check=False).returncode == 0 for step in steps)


def sync(*extras: str) -> list[str]:
    """The command that installs extras from the lock, without what is compiled here."""
    chosen = [word for extra in extras for word in ("--extra", extra)]
    left = ["llama-cpp-python", *([] if FROM_THE_LOCK & set(extras) else ["torch"])]
    left_out = [word for name in left for word in ("--no-install-package", name)]
    return [UV, "sync", "--frozen", "--inexact", "--no-dev", "--no-install-project", *chosen, *left_out]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
