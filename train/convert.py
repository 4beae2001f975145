"""Stage `convert`: data of other people's making, as lines to learn from.

    python -m train.convert --input data=~/.vibe/logs                   sessions of Mistral Vibe, OpenAI, ShareGPT, ours
    python -m train.convert --input data=answers.csv --set system="Be brief."
    python -m train.convert --set dataset=tatsu-lab/alpaca --set split=train

Read are JSON, JSON Lines (also .gz), CSV, TSV, Parquet and Arrow. A row is a conversation (`messages`, or ShareGPT's
`conversations`, also as JSON text), or a question and its answer in columns of the usual names (COLUMNS). What cannot
be read is counted with the reason; nothing is judged here (train/validate.py).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from pydantic import Field, JsonValue

from app import log_files
from app.errors import InvalidRequest, NothingToLearn
from app.logs import Session, Unreadable, answers, record
from app.messages import Message, Strict
from app.turns import Conversation
from train import lines, recorded, stages
from train.lines import Line
from train.stages import Outcome, Stage, Work

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question": ("instruction", "question", "prompt", "query", "input"),  # of several the first, see `flat`
    "answer": ("output", "answer", "response", "completion"),
}
CONVERSATIONS = ("messages", "conversations", "turns")
JSON_FILES = (".json", ".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")

Row = dict[str, Any]


class Convert(Strict):
    """The parameters of the stage `convert`."""

    dataset: str | None = None  # org/name on the Hugging Face Hub, instead of files
    subset: str | None = None  # of it, where it has several
    split: str = "train"
    revision: str | None = None
    system: str | None = None  # a system prompt for conversations without one
    group: str | None = None  # a field: rows of the same value are one conversation (its branches), and stay together
    limit: int | None = Field(None, ge=1)  # conversations


def check(inputs: Mapping[str, Path], parameters: Convert) -> None:
    """Raises InvalidRequest where it is not clear what to convert."""
    if bool(inputs) == (parameters.dataset is not None):
        raise InvalidRequest("Give either --input data=PATH or --set dataset=org/name.", "data")


def make(work: Work[Convert]) -> Outcome:
    """Read, write, count."""
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()

    def told() -> Iterator[str]:
        for found in _found(work):
            counts["read"] += 1
            line = _line(found, work.parameters)
            if isinstance(line, Unreadable):
                dropped[str(line)[:100]] += 1
                continue
            counts["answers"] += sum(line.weights)
            yield lines.dump(line)
            if counts["read"] % 1000 == 0:
                work.progress(counts["read"], None)
            if counts["read"] - dropped.total() == work.parameters.limit:
                return

    counts["lines"] = lines.save(work.folder / "data.jsonl", told())
    if not counts["lines"]:
        reason = dropped.most_common(1)[0][0] if dropped else "there were no rows"
        raise NothingToLearn("conversations that can be read", 0, 1, f"The most frequent reason: {reason}.")
    return Outcome(counts, dropped)


def given(parameters: Convert, _: Path) -> Mapping[str, str]:
    """The revision of a data set of the Hub."""
    if parameters.dataset is None:
        return {}
    if Path(parameters.dataset).exists():
        return {"dataset": stages.content(Path(parameters.dataset))}
    from huggingface_hub import HfApi, constants

    if parameters.revision is None and not constants.HF_HUB_OFFLINE:
        try:
            return {"dataset": str(HfApi().dataset_info(parameters.dataset).sha)}
        except (OSError, ValueError) as error:
            raise _unreachable(parameters.dataset, error) from error
    return {"dataset": parameters.revision or "cached"}


def flat(row: Row) -> Row:
    """A row with a question and an answer in columns as a conversation; any other row as it is.

    Alpaca's `instruction` with an `input` is one question of two paragraphs.
    """
    if any(row.get(name) for name in CONVERSATIONS):
        return {
            k: json.loads(v) if k in {*CONVERSATIONS, "tools"} and isinstance(v, str) else v for k, v in row.items()
        }
    question, answer = (next((row[name] for name in COLUMNS[kind] if row.get(name)), None) for kind in COLUMNS)
    if not isinstance(question, str) or not isinstance(answer, str):
        return row
    more = row.get("input") if row.get("instruction") else row.get("context")
    asked = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.insert(0, {"role": "system", "content": row["system"]})
    return {"messages": messages, **{k: v for k, v in row.items() if k in {"tools", "model"}}}


def _line(found: tuple[str, Row | Session | Conversation | Unreadable], parameters: Convert) -> Line | Unreadable:
    where, what = found
    group: JsonValue = None
    try:
        if isinstance(what, dict):
            group = what.get(parameters.group) if parameters.group else None
            what = record(flat(what))
        if isinstance(what, Unreadable):
            return what
        line = _exported(what) if isinstance(what, Conversation) else _session(what, parameters)
    except (Unreadable, InvalidRequest, ValueError) as error:
        return error if isinstance(error, Unreadable) else Unreadable(str(error))
    name = str(group) if group is not None else line.metadata.get("id")
    return line._replace(metadata={**line.metadata, "id": name, "from": where})


def _session(session: Session, parameters: Convert) -> Line:
    messages, learnt = session.messages, set(answers(session)) - session.bad
    weights = tuple(int(place in learnt) for place in range(len(messages)))
    if parameters.system and messages[0].role != "system":
        messages, weights = (Message(role="system", content=parameters.system), *messages), (0, *weights)
    return Line(messages, weights, session.tools, {"id": session.key, "format": session.format, "model": session.model})


def _exported(conversation: Conversation) -> Line:
    """Our own export tells no system prompts."""
    line = recorded.whole(conversation, {turn.id: () for turn in conversation.turns}, "")
    if line is None:
        raise Unreadable("a conversation of ours in which nobody taught anything")
    return line


def _found(work: Work[Convert]) -> Iterator[tuple[str, Row | Session | Conversation | Unreadable]]:
    if work.parameters.dataset is not None:
        for number, row in enumerate(_of_hub(work.parameters, work.home), 1):
            yield f"{work.parameters.dataset}:{number}", row
        return
    for path in work.all("data"):
        yield from _in(path)


def _in(path: Path) -> Iterator[tuple[str, Row | Session | Conversation | Unreadable]]:
    """What lies in a file or folder. Folders with a meta.json are sessions of Vibe, whatever else is in them."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    sessions = {file.parent for file in files if file.name == log_files.META}
    for session in sorted(sessions):
        if not sessions & set(session.parents):
            yield from ((found.where, found.what) for found in log_files.find(str(session)))
    for file in files:
        if sessions & set(file.parents) or file.name in {stages.MANIFEST, stages.PROGRESS} or file.name[0] == ".":
            continue
        for number, row in enumerate(_rows(file), 1):
            yield f"{file.name}:{number}", row


def _rows(file: Path) -> Iterator[Row | Unreadable]:
    name = file.name.lower().removesuffix(".gz")
    try:
        if name.endswith(JSON_FILES):
            yield from _of_json(file, listed=name.endswith(".json"))
        elif name.endswith(TABLES):
            yield from _of_table(file)
        else:
            yield Unreadable(f"files that end in {file.suffix or 'nothing'} are not read")
    except (OSError, ValueError, RecursionError) as error:
        yield Unreadable(f"{file.name} cannot be read: {error}")


def _of_json(file: Path, *, listed: bool) -> Iterator[Row | Unreadable]:
    with fsspec.open(str(file), "rt", compression="infer", encoding="utf-8-sig") as stream:
        if listed:
            whole = json.load(stream)
            yield from whole if isinstance(whole, list) else [whole]
            return
        for text in stream:
            if text.strip():
                try:
                    yield json.loads(text)
                except ValueError:
                    yield Unreadable("it is no JSON")


def _of_table(file: Path) -> Iterator[Row]:
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    if file.suffix == ".parquet":
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    elif file.suffix in {".arrow", ".feather"}:
        yield from _of_arrow(file)
    else:
        options = pyarrow.csv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ",", newlines_in_values=True)
        yield from pyarrow.csv.read_csv(file, parse_options=options).to_pylist()


def _of_arrow(file: Path) -> Iterator[Row]:
    """Both forms: files (Feather 2), and streams, which `datasets` writes."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        try:
            yield from pa.ipc.open_file(source).read_all().to_pylist()
        except pa.ArrowInvalid:
            source.seek(0)
            for batch in pa.ipc.open_stream(source):
                yield from batch.to_pylist()


def _of_hub(parameters: Convert, home: Path) -> Iterator[Row]:
    import datasets

    name = parameters.dataset or ""
    try:
        found = datasets.load_dataset(
            name,
            parameters.subset,
            split=parameters.split,
            revision=parameters.revision,
            cache_dir=str(home / "datasets" / ".hub"),
        )
    except (OSError, ValueError) as error:
        raise _unreachable(name, error) from error
    yield from found


def _unreachable(name: str, error: Exception) -> InvalidRequest:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InvalidRequest(f"The data set {name} cannot be read: {reason}", "dataset")


STAGE = Stage(
    name="convert",
    does="Data of other people's making, as lines to learn from.",
    place="datasets",
    inputs=("data+?",),
    parameters=Convert,
    make=make,
    check=check,
    given=given,
)

if __name__ == "__main__":
    stages.main(STAGE)
