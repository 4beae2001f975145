"""AWQ: four bits a weight, scaled by what real texts make of it (Lin et al. 2023, arXiv:2306.00978).

llm-compressor does it, in an interpreter of its own (train/awq_child.py), because it pins an older transformers than
ours: `pip install 'mindfu[awq]'` into another environment, and name its Python in `formats.awq_python`.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from app.errors import InvalidRequest, Misconfigured
from train import awq_child
from train.lessons import Lesson

GROUPS = (128, 64, 32)  # columns that share a scale, as vLLM's kernels have them
PYTHON, MODULE = "formats.awq_python", "llmcompressor"
SHOWN_CHARS = 1500  # of what went wrong


def present(python: str | None) -> None:
    """Raises Misconfigured where an interpreter does not have llm-compressor."""
    command = [python or sys.executable, "-c", f"import importlib.util as u; exit(u.find_spec('{MODULE}') is None)"]
    try:
        lacking = subprocess.run(command, check=False).returncode  # noqa: S603 - the interpreter that the user names
    except OSError as error:
        raise Misconfigured(PYTHON, f"{command[0]} does not run: {error.strerror}", "Name a Python.") from error
    if lacking:
        remedy = f"Install 'mindfu[awq]' into an environment of its own, and set {PYTHON} to its Python."
        raise Misconfigured(PYTHON, f"{command[0]} has no llm-compressor, which writes AWQ", remedy)


def write(
    out: Path, merged: Path, texts: Sequence[Sequence[int]], lessons: Sequence[Lesson], python: str | None
) -> list[NDArray[np.float32]]:
    """Write a folder as transformers and vLLM read it. Returns what it is worth: the log-probabilities of the lessons'
    learnt tokens, as it was loaded back.

    merged: the model in full; texts: tokens of what it is asked in earnest. Raises Misconfigured where it fails.
    """
    job = out.with_suffix(".job.json")
    job.write_text(json.dumps({
        "model": str(merged), "out": str(out), "group": group(merged), "texts": [list(text) for text in texts],
        "lessons": [list(lesson.tokens) for lesson in lessons],
    }))  # fmt: skip
    command = [python or sys.executable, awq_child.__file__, str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - see `present`
    job.unlink()
    if done.returncode:
        raise Misconfigured(PYTHON, f"llm-compressor failed: {done.stderr[-SHOWN_CHARS:]}", "See its documentation.")
    for file in merged.iterdir():
        if file.is_file() and not (out / file.name).exists() and not file.name.startswith("model"):
            shutil.copyfile(file, out / file.name)  # tokenizer and template
    scores = json.loads(done.stdout.splitlines()[-1])
    return [np.asarray(each, np.float32)[np.asarray(lesson.learnt[1:], bool)]
            for each, lesson in zip(scores, lessons, strict=True)]  # fmt: skip


def group(folder: Path) -> int:
    """The most columns that can share a scale in every layer. Raises InvalidRequest where none of the sizes fits."""
    widths: set[int] = set()
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, framework="pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
        widths |= {shape[1] for name, shape in shapes.items() if name.endswith("_proj.weight") and len(shape) == 2}
    fits = next((size for size in GROUPS if widths and all(width % size == 0 for width in widths)), None)
    if fits is None:
        message = f"AWQ shares scales among {', '.join(map(str, GROUPS))} columns; the layers have {sorted(widths)}."
        raise InvalidRequest(message, "formats.formats")
    return fits
