"""Stage `formats`: a tuned adapter in the formats that people serve, each loaded back and compared before it is done.

    python -m train.formats --input tuned=.mindfu/runs/tune-… --set 'formats=[gguf-lora, Q4_K_M, safetensors]'

    gguf-lora    adapter.gguf             beside the base's GGUF, as MindFu and llama.cpp load it
    gguf         merged.gguf              merged into the base's own F16, BF16, F32 or Q8_0 file
    Q4_K_M, Q5_K_M, Q8_0                  merged-<type>.gguf, by llama.cpp's own quantiser
    safetensors  merged/                  merged, with tokenizer and template, as transformers and vLLM read it
    vllm         vllm/                    the same with what vLLM needs: `vllm serve --config vllm.yaml` in the folder
    awq          awq/                     merged, four bits a weight, for vLLM; needs `--input data=` a split
    peft         adapter/                 as PEFT reads it, and vLLM beside the base

Compared is what a few texts' tokens are worth to each: the mean change of a log-probability against PyTorch with PEFT.
"""

import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from app.errors import Misconfigured, NothingToLearn
from app.llama.styles import name_of
from app.messages import Message, Strict
from app.settings import LLMSettings
from train import (
    awq,
    base,
    gguf_lora,
    gguf_merge,
    gguf_names,
    lines,
    lora,
    parity,
    safetensors_merge,
    serving,
    stages,
    vllm_folder,
)
from train.evaluate import served_file, trained_template
from train.lessons import Lesson, Teacher
from train.lines import Line
from train.lora import Delta
from train.stages import Outcome, Stage, Work

MERGED = "merged.gguf"
AWQ_TOKENS = 2048  # of a conversation that AWQ looks at
Format = Literal["gguf-lora", "gguf", "Q4_K_M", "Q5_K_M", "Q8_0", "safetensors", "vllm", "awq", "peft"]
BOUNDS: dict[Format, float] = {"gguf-lora": 0.1, "gguf": 0.1, "Q8_0": 0.1, "Q5_K_M": 0.3, "Q4_K_M": 0.5,
                               "safetensors": 0.02, "vllm": 0.02, "awq": 0.5, "peft": 0.02}  # fmt: skip
"""How far a format may be from PyTorch: the mean change of a token's log-probability, nats."""
TEXTS = (
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Say it as JSON.", '{"city": "Paris", "country": "France"}'),
    ("And in other words?", "The seat of the French government lies on the river Seine, in Paris."),
)


class Formats(Strict):
    """The parameters of the stage `formats`."""

    formats: tuple[Format, ...] = Field(("gguf-lora", "peft"), min_length=1)
    gguf: str | None = None  # the base's GGUF to merge into and to compare with; None: the base's own
    half: bool = False  # the GGUF LoRA in float16
    name: str = Field(LLMSettings().name, min_length=1)  # that clients of vLLM send as `model`
    window: int | None = Field(None, ge=1)  # tokens that vLLM shall serve; None: as many as the model has
    awq_python: str | None = None  # an interpreter with llm-compressor; None: this one
    awq_texts: int = Field(128, ge=1)  # conversations of the training part that AWQ looks at
    threads: int | None = Field(None, ge=1)


def check(inputs: Mapping[str, Path], parameters: Formats) -> None:
    """Raises where there is no adapter, or no GGUF that one of the formats needs."""
    tuned = stages.manifest(inputs["tuned"])
    if tuned.facts.get("kind") != "adapter":
        problem = f"{inputs['tuned']} holds a whole model, not an adapter"
        raise Misconfigured("tuned", problem, "Tune with another preset than 'full'.")
    if "awq" in parameters.formats:
        awq.present(parameters.awq_python)
        if "data" not in inputs:
            remedy = "Give the split with --input data=FOLDER."
            raise Misconfigured("formats.formats", "awq has to see texts that the model is for", remedy)
    if set(parameters.formats) - {"safetensors", "vllm", "awq", "peft"}:
        gguf_names.layout(served_file(str(tuned.facts["base"]), parameters.gguf, "formats.gguf"))


def make(work: Work[Formats]) -> Outcome:
    """Write each, load it back, compare."""
    parameters, tuned = work.parameters, work.inputs["tuned"]
    told = stages.manifest(tuned)
    name, template = str(told.facts["base"]), trained_template(told)
    found, deltas = base.find(name, work.home), lora.read(tuned / "adapter")
    teacher = Teacher(found.folder, template)
    lessons = _lessons(teacher)
    wanted = np.concatenate(parity.by_pytorch(found.folder, tuned / "adapter", lessons)[1])
    sizes: dict[str, int] = {}
    apart: dict[str, float] = {}
    for done, format_ in enumerate(parameters.formats):
        work.progress(done, len(parameters.formats), format_)
        if format_ == "awq":
            written, read = _awq(work, deltas, found.folder, teacher, lessons, template)
        else:
            written = _write(format_, work, deltas, found.folder, name, template)
            read = _scored(format_, written, work, found.folder, name, lessons)
        apart[format_] = float(np.abs(np.concatenate(read) - wanted).mean())
        sizes[f"{format_}_bytes"] = _size(written)
        if not apart[format_] <= BOUNDS[format_]:
            problem = (
                f"{written.name} does not say what PyTorch says: {apart[format_]:.4f} nats a token apart, "
                f"{BOUNDS[format_]:g} are allowed for {format_}"
            )
            raise Misconfigured("formats.formats", problem, "Give a finer GGUF to merge into, or leave the format out.")
    if "gguf" not in parameters.formats:
        (work.folder / MERGED).unlink(missing_ok=True)
    return Outcome(sizes, facts={"mean_difference": {name: round(value, 6) for name, value in apart.items()}})


def _write(
    format_: Format, work: Work[Formats], deltas: Mapping[str, Delta], folder: Path, name: str, template: str | None
) -> Path:
    """Write one format. Returns its file or folder."""
    parameters, out = work.parameters, work.folder
    if format_ == "peft":
        return Path(shutil.copytree(work.inputs["tuned"] / "adapter", out / "adapter", dirs_exist_ok=True))
    if format_ == "safetensors":
        safetensors_merge.merge(out / "merged", deltas, folder, template)
        return out / "merged"
    if format_ == "vllm":
        safetensors_merge.merge(out / "vllm", deltas, folder, template)
        vllm_folder.complete(out / "vllm", parameters.name, parameters.window)
        return out / "vllm"
    file = served_file(name, parameters.gguf, "formats.gguf")
    if format_ == "gguf-lora":
        gguf_lora.write(out / "adapter.gguf", deltas, file, half=parameters.half, taught_by=name_of(template))
        return out / "adapter.gguf"
    merged = out / MERGED
    if not merged.exists():
        gguf_merge.merge(merged, deltas, file, template)
    if format_ == "gguf":
        return merged
    assert format_ != "awq"  # has a way of its own
    small = out / f"merged-{format_}.gguf"
    gguf_merge.quantise(merged, small, format_, threads=parameters.threads)
    return small


def _scored(
    format_: Format, written: Path, work: Work[Formats], folder: Path, name: str, lessons: Sequence[Lesson]
) -> list[NDArray[np.float32]]:
    """The log-probabilities of the texts' tokens, by what was written."""
    if format_ == "peft":
        return parity.by_pytorch(folder, written, lessons)[1]
    if format_ in {"safetensors", "vllm"}:
        own = _lessons(Teacher(written))  # by the folder's own tokenizer and template
        return parity.by_pytorch(written, None, own)[0]
    settings = LLMSettings(window=512, threads=work.parameters.threads)
    if format_ == "gguf-lora":
        file = served_file(name, work.parameters.gguf, "formats.gguf")
        return serving.likelihoods(file, (written,), lessons, settings)[0]
    return serving.likelihoods(written, (None,), lessons, settings)[0]


def _awq(
    work: Work[Formats],
    deltas: Mapping[str, Delta],
    folder: Path,
    teacher: Teacher,
    lessons: Sequence[Lesson],
    template: str | None,
) -> tuple[Path, list[NDArray[np.float32]]]:
    """Write it from a merged folder, which goes again. Returns it, and the lessons' log-probabilities by it."""
    told = islice(lines.read(work.inputs["data"] / "train.jsonl"), work.parameters.awq_texts)
    texts = [lesson.tokens[:AWQ_TOKENS] for line in told for lesson in teacher.lessons(line)]
    if not texts:
        raise NothingToLearn("conversations for AWQ to look at", 0, 1, "Give another split.")
    merged, out = work.folder / ".merged", work.folder / "awq"
    safetensors_merge.merge(merged, deltas, folder, template)
    read = awq.write(out, merged, texts, lessons, work.parameters.awq_python)
    shutil.rmtree(merged)
    return out, read


def _lessons(teacher: Teacher) -> list[Lesson]:
    """The texts as the model's template shows them, every answer learnt."""
    told = [Line((Message(role="user", content=asked), Message(role="assistant", content=answer)), (0, 1))
            for asked, answer in TEXTS]  # fmt: skip
    return [lesson for line in told for lesson in teacher.lessons(line)]


def _size(written: Path) -> int:
    files = written.rglob("*") if written.is_dir() else [written]
    return sum(file.stat().st_size for file in files if file.is_file())


STAGE = Stage(
    name="formats",
    does="Write a tuned adapter in the formats that people serve.",
    place="runs",
    inputs=("tuned", "data?"),
    parameters=Formats,
    make=make,
    check=check,
)

if __name__ == "__main__":
    stages.main(STAGE)
