"""What a stage of the learning loop is: a name, the folders it reads, its parameters, and the folder it writes.

    python -m train.validate --input data=.mindfu/datasets/export-0f3a… --set max_turns=40
    python -m train.validate --input data=data/exported --out data/validated     # for DVC: a copy at a fixed place

A stage writes into one folder, `<home>/datasets/<stage>-<key>` or `<home>/runs/<stage>-<key>`. The key is a hash of the
contents of its inputs, its parameters and its code, so that the same work is done once: a folder with a manifest.json
is complete and is never written again. One without is what an interrupted run left; the same run goes on in it. Only
one process at a time works on a folder; others wait for it.

What this does not do: know what depends on what. `dvc.yaml` and `mindfu train` say that.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import yaml
from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from app.errors import InvalidRequest, MindFuError, Misconfigured
from app.messages import Strict
from app.settings import home
from train import sources

MANIFEST, PROGRESS = "manifest.json", "progress.json"
KEY_CHARS = 16  # of the folder's name: 64 bits
PARAMETERS = Path("params.yaml")

P = TypeVar("P", bound=Strict)


class Input(Strict):
    """What a stage read. content: the hash of it; path: where it lay, for people."""

    content: str
    path: str | None = None


class Manifest(Strict):
    """What a finished stage says about its folder, in manifest.json.

    content: a hash of the outputs, by which later stages know this folder; outputs: file → SHA-256. counts: what came
    out; dropped: what did not, by reason; facts: what later stages need to know, and results.
    """

    stage: str
    key: str
    content: str
    inputs: dict[str, Input]
    parameters: dict[str, JsonValue]
    code: str
    commit: str | None = None  # of git; "+" at its end: the working tree differs
    outputs: dict[str, str]
    counts: dict[str, int] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(default_factory=dict)
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    created_at: AwareDatetime
    seconds: float


class Outcome(NamedTuple):
    """What a stage reports of its work; goes into the manifest."""

    counts: Mapping[str, int]
    dropped: Mapping[str, int] = {}
    facts: Mapping[str, JsonValue] = {}


@dataclass(frozen=True, slots=True)
class Work(Generic[P]):
    """What a stage gets. inputs: folders or files by name; folder: where to write, with what an interrupted run left.

    given: inputs that are no files, like the state of a database, by name.
    """

    inputs: Mapping[str, Path]
    parameters: P
    folder: Path
    home: Path
    given: Mapping[str, str] = field(default_factory=dict)

    def all(self, name: str) -> tuple[Path, ...]:
        """The inputs of a name that may be given several times, in their order."""
        return tuple(path for key, path in self.inputs.items() if key.partition(".")[0] == name)

    def progress(self, done: int, total: int | None, text: str = "") -> None:
        """Say how far it is, for those who watch: progress.json. total None: nobody knows."""
        state = {"done": done, "total": total, "text": text, "at": datetime.now(UTC).isoformat()}
        write(self.folder / PROGRESS, json.dumps(state))


@dataclass(frozen=True, slots=True)
class Stage(Generic[P]):
    """One step of the loop.

    name: of its module in train/, and of its section in params.yaml. inputs: names of what it reads; behind a name, "?"
    says that it may be left out, "+" that there may be several: `data`, `data.2`, `data.3`, … check: raises within the
    first second where the work cannot succeed. given: reads what is no file, see Work.given; a change of it changes
    the key.
    """

    name: str
    does: str
    place: Literal["datasets", "runs"]
    inputs: tuple[str, ...]
    parameters: type[P]
    make: Callable[[Work[P]], Outcome]
    check: Callable[[Mapping[str, Path], P], None] = lambda _inputs, _parameters: None
    given: Callable[[P, Path], Mapping[str, str]] = lambda _parameters, _home: {}


def run(
    stage: Stage[P],
    *,
    inputs: Mapping[str, Path],
    parameters: P,
    home: Path,
    out: Path | None = None,
    began: Callable[[Path], None] = lambda _folder: None,
) -> Path:
    """Do the work of a stage, unless it was done. Returns its folder. out: copy the folder's outputs there, too.

    began: is told the folder as soon as it is known, before the work. Raises Misconfigured for an input that is missing
    or unfinished, and what the stage itself raises.
    """
    inputs = _found(stage, inputs)
    stage.check(inputs, parameters)
    given = stage.given(parameters, home)
    read = {name: Input(content=content(path), path=str(path)) for name, path in inputs.items()}
    read |= {name: Input(content=value) for name, value in given.items()}
    code = sources.fingerprint(f"train.{stage.name}")
    key = _hash([stage.name, code, parameters.model_dump(mode="json"), {n: i.content for n, i in read.items()}])
    folder = home / stage.place / f"{stage.name}-{key[:KEY_CHARS]}"
    folder.mkdir(parents=True, exist_ok=True)
    began(folder)
    with _alone(folder):
        if not (folder / MANIFEST).exists():
            started = time.monotonic()
            outcome = stage.make(Work(inputs, parameters, folder, home, given))
            outputs = _outputs(folder)
            manifest = Manifest(
                stage=stage.name,
                key=key,
                content=_hash(outputs),
                inputs=read,
                parameters=parameters.model_dump(mode="json"),
                code=code,
                commit=_commit(),
                outputs=outputs,
                counts=dict(outcome.counts),
                dropped=dict(outcome.dropped),
                facts=dict(outcome.facts),
                created_at=datetime.now(UTC),
                seconds=round(time.monotonic() - started, 3),
            )
            write(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    if out is not None:
        _copy(folder, out)
    return folder


def manifest(folder: Path) -> Manifest:
    """Of a finished stage. Raises Misconfigured where the folder is none, or is unfinished."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        problem = f"{folder} is no finished stage: it has no {MANIFEST}"
    except ValidationError as error:
        problem = f"{folder / MANIFEST} is of another version: {error.errors()[0]['msg']}"
    raise Misconfigured("input", problem, "Run the stage that writes it again.")


def content(path: Path) -> str:
    """A hash of what is read: of a stage's folder the one in its manifest, else of every byte of the file or folder."""
    if path.is_file():
        return _sha256(path)
    return manifest(path).content if (path / MANIFEST).exists() else _hash(_outputs(path))


def write(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main(stage: Stage[P], arguments: list[str] | None = None) -> None:
    """The command line of a stage. Prints the folder on its last line; 2: it cannot be done, with the reason."""
    parser = argparse.ArgumentParser(prog=f"python -m train.{stage.name}", description=stage.does)
    reads = f"what it reads: {', '.join(stage.inputs)} (?: may be left out, +: may be given several times)"
    parser.add_argument("--input", action="append", default=[], metavar="NAME=PATH", help=reads)
    parser.add_argument("--params", type=Path, default=PARAMETERS, help="YAML; the section of the stage's name counts")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter, as YAML")
    parser.add_argument("--out", type=Path, help="copy what was written to this folder")
    options = parser.parse_args(arguments)
    try:
        chosen = parameters(stage, options.params, dict(pair("--set", text) for text in options.set))
        paths = _numbered(pair("--input", text) for text in options.input)
        folder = run(stage, inputs=paths, parameters=chosen, home=home(), out=options.out)
    except MindFuError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    told = manifest(folder)
    print(json.dumps({"counts": told.counts, "dropped": told.dropped, "facts": told.facts}, indent=1))
    print(folder)


def parameters(stage: Stage[P], file: Path, changes: Mapping[str, str]) -> P:
    """A stage's parameters, see `section`."""
    return section(stage.name, stage.parameters, file, changes)


def section(stage: str, kind: type[P], file: Path, changes: Mapping[str, str]) -> P:
    """The parameters of a stage: defaults, its section of the file where there is one, then the changes, as YAML.

    A dot reaches into a section: `quality.min_turns`. Raises Misconfigured, naming the parameter.
    """
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        given = deepcopy((told or {}).get(stage) or {})
        for name, text in changes.items():
            _change(given, name.split("."), yaml.safe_load(text))
        return checked(stage, kind, given)
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise Misconfigured(
            stage, f"its parameters are no YAML of names and values ({reason})", f"See {file}."
        ) from error


def checked(stage: str, kind: type[P], given: Mapping[str, object]) -> P:
    """The parameters of a stage that were given. Raises Misconfigured, naming the one that is wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in (stage, *first["loc"]))
        place = kind.__module__.replace(".", "/")
        raise Misconfigured(name, first["msg"], f"The parameters stand in {place}.py, as {kind.__name__}.") from error


def _change(given: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Set a parameter, in the section that its path leads to."""
    for part in path[:-1]:
        given = given.setdefault(part, {})
    given[path[-1]] = value


def _numbered(pairs: Iterable[tuple[str, str]]) -> dict[str, Path]:
    """data=A data=B → {"data": A, "data.2": B}."""
    paths: dict[str, Path] = {}
    counts: Counter[str] = Counter()
    for name, path in pairs:
        counts[name] += 1
        paths[name if counts[name] == 1 else f"{name}.{counts[name]}"] = Path(path)
    return paths


def _found(stage: Stage[P], inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The inputs, all there and known. A name with a number stands for one more of that name."""
    marks = {name.rstrip("?+"): name[len(name.rstrip("?+")) :] for name in stage.inputs}
    for name, path in inputs.items():
        family, _, number = name.partition(".")
        if family not in marks or (number and "+" not in marks[family]):
            raise InvalidRequest(f"{stage.name} reads no input '{name}', but {', '.join(marks)}.", "input")
        if not path.exists():
            raise Misconfigured(name, f"there is no {path}", "Run the stage that writes it first.")
    for name, mark in marks.items():
        if "?" not in mark and name not in inputs:
            raise InvalidRequest(f"{stage.name} needs the input '{name}': --input {name}=PATH.", "input")
    return dict(inputs)


def _outputs(folder: Path) -> dict[str, str]:
    """Every file of a folder with its hash, in the order of names. Those that begin with a dot are scratch."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in files}
    ours = {MANIFEST, PROGRESS}
    return {
        name.as_posix(): _sha256(path)
        for name, path in names.items()
        if name.as_posix() not in ours and not any(part.startswith(".") for part in name.parts)
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _copy(folder: Path, out: Path) -> None:
    """Replace `out` by what a stage wrote, manifest included."""
    if out.exists() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise Misconfigured("--out", f"{out} holds something that no stage wrote", "Name another folder.")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(".*", PROGRESS))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; freed by the system when this one ends, however it ends."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _commit() -> str | None:
    """The revision of this checkout; None where it is none."""
    head, state = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return None if head is None else head + ("+" if state else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(sources.ROOT), "--no-optional-locks", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


def pair(option: str, text: str) -> tuple[str, str]:
    """NAME=VALUE of the command line. Raises InvalidRequest."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"'{option} {text}' is no NAME=VALUE.", option)
    return name, value


if __name__ == "__main__":
    sys.exit("This is no stage. See docs/loop.md for their names.")
