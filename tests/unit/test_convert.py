"""The stage `convert`: whatever form data come in, one form goes out, and what cannot be read is counted."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from app.errors import InvalidRequest, NothingToLearn
from train import convert, lines, stages
from train.convert import Convert, flat

ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
]
TOLD = [[("Add.\n\n1 and 2", 0), ("3", 1)], [("Say hello.", 0), ("Hello.", 1)]]


def converted(path: Path, **changes: object) -> tuple[list[list[tuple[str, int]]], stages.Manifest]:
    parameters = Convert.model_validate(changes)
    folder = stages.run(convert.STAGE, inputs={"data": path}, parameters=parameters, home=path.parent / "home")
    told = lines.read(folder / "data.jsonl")
    said = [list(zip((m.content for m in line.messages), line.weights, strict=True)) for line in told]
    return said, stages.manifest(folder)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """A file of the kind that its name says."""
    table = pa.Table.from_pylist(rows)
    match path.suffixes:
        case [".json"]:
            path.write_text(json.dumps(rows))
        case [".jsonl"]:
            path.write_text("\n".join(map(json.dumps, rows)))
        case [".jsonl", ".gz"]:
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        case [".csv" | ".tsv" as kind]:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        case [".parquet"]:
            pyarrow.parquet.write_table(table, path)
        case [".feather"]:
            pyarrow.feather.write_feather(table, path)
        case [".arrow"]:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet", "a.feather", "a.arrow"]
)
def test_alpaca_comes_in_any_file(name: str, tmp_path: Path) -> None:
    """Two rows, two conversations, whatever holds them."""
    write(tmp_path / name, ALPACA)
    assert converted(tmp_path / name)[0] == TOLD


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, [("a", 0), ("b", 1)]),
        ({"question": "a", "answer": "b", "system": "c"}, [("c", 0), ("a", 0), ("b", 1)]),
        ({"question": "a", "context": "c", "response": "b"}, [("a\n\nc", 0), ("b", 1)]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [("a", 0), ("b", 1)]),
        (
            {"messages": json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])},
            [("a", 0), ("b", 1)],
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                          {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
            [("a", 0), ("b", 0), ("c", 0), ("d", 1)],
        ),
    ],
)  # fmt: skip
def test_rows_of_usual_forms_are_understood(
    row: dict[str, object], expected: list[tuple[str, int]], tmp_path: Path
) -> None:
    """Weights are kept."""
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert converted(tmp_path / "a.jsonl")[0] == [expected]


def test_sessions_of_vibe_are_read_among_other_files(tmp_path: Path) -> None:
    """A folder with meta.json is one conversation."""
    folder = tmp_path / "logs"
    (folder / "session_1").mkdir(parents=True)
    (folder / "session_1" / "meta.json").write_text(json.dumps({"session_id": "s1"}))
    said = [{"role": "user", "content": "fix it"}, {"role": "assistant", "content": "Fixed."}]
    (folder / "session_1" / "messages.jsonl").write_text("\n".join(map(json.dumps, said)))
    write(folder / "b.csv", ALPACA[1:])
    assert converted(folder)[0] == [[("fix it", 0), ("Fixed.", 1)], TOLD[1]]


def test_what_cannot_be_read_is_counted_by_its_reason(tmp_path: Path) -> None:
    """And where nothing can, the most frequent reason is told."""
    file = tmp_path / "a.jsonl"
    file.write_text("{\n" + json.dumps({"text": "x"}) + "\n" + json.dumps(ALPACA[0]))
    said, told = converted(file)
    assert said == TOLD[:1]
    assert told.dropped == {"it is no JSON": 1, 'it has neither "messages" nor "conversations" nor "turns"': 1}
    file.write_text("{\n{\n")
    with pytest.raises(NothingToLearn, match="The most frequent reason: it is no JSON"):
        converted(file)


def test_a_system_prompt_a_limit_and_a_group_can_be_set(tmp_path: Path) -> None:
    """Rows of a group are known as one conversation, so that a split keeps them together."""
    write(tmp_path / "a.jsonl", [{**row, "tree": "t1"} for row in ALPACA])
    said, _ = converted(tmp_path / "a.jsonl", system="Be brief.", limit=1)
    assert said == [[("Be brief.", 0), *TOLD[0]]]
    parameters = Convert(group="tree")
    inputs = {"data": tmp_path / "a.jsonl"}
    folder = stages.run(convert.STAGE, inputs=inputs, parameters=parameters, home=tmp_path / "home")
    assert [line.id for line in lines.read(folder / "data.jsonl")] == ["t1", "t1"]


def test_it_is_clear_what_to_convert(tmp_path: Path) -> None:
    """Files or a data set of the Hub, not both, not neither."""
    for inputs, parameters in (({}, Convert()), ({"data": tmp_path}, Convert(dataset="a/b"))):
        with pytest.raises(InvalidRequest, match="Give either"):
            stages.run(convert.STAGE, inputs=inputs, parameters=parameters, home=tmp_path)


def test_a_data_set_of_the_hub_is_read_by_name(tmp_path: Path) -> None:
    """Here a folder stands for it, which `datasets` reads in the same way."""
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", ALPACA)
    parameters = Convert(dataset=str(tmp_path / "set"))
    folder = stages.run(convert.STAGE, inputs={}, parameters=parameters, home=tmp_path / "home")
    assert stages.manifest(folder).counts["lines"] == 2


def test_other_rows_stay_as_they_are() -> None:
    """The parser of logs says what is wrong with them."""
    assert flat({"question": "a"}) == {"question": "a"}
