"""The JSON schema of a domain: told, in a file, or a class; the schema itself is the parameter."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import Misconfigured
from train import stages, validate
from train.generate import Generate
from train.quality import Quality

CLASSES = """
from __future__ import annotations
from pydantic import BaseModel, Field

class Exercise(BaseModel):
    name: str
    sets: int = Field(ge=1)

class WorkoutDay(BaseModel):
    exercises: list[Exercise] = Field(min_length=1)
"""
DAY = {"exercises": [{"name": "squat", "sets": 3}]}


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    (tmp_path / "workout.py").write_text(CLASSES)
    place = f"{tmp_path / 'workout.py'}:WorkoutDay"
    (tmp_path / "workout.json").write_text(json.dumps(Quality(json_schema=place).json_schema))
    return [place, str(tmp_path / "workout.json")]


def test_a_class_and_a_file_are_the_schema_itself(places: list[str]) -> None:
    """To all stages that take one; told again as JSON it is the same."""
    one, other = (Quality(json_schema=place).json_schema for place in places)
    assert one == other == Generate(url="http://t/v1", model="m", json_schema=places[0]).json_schema
    assert one is not None
    assert one["required"] == ["exercises"]
    assert Quality.model_validate(Quality(json_schema=places[0]).model_dump(mode="json")).json_schema == one


def test_what_does_not_satisfy_the_domain_is_not_learnt(places: list[str], tmp_path: Path) -> None:
    """Of three answers one is a day: the others are no JSON, and no squats at all."""
    answers = [json.dumps(DAY), "Squats!", json.dumps({"exercises": []})]
    folder = tmp_path / "data"
    folder.mkdir()
    told = [
        [{"role": "user", "content": f"{n} legs"}, {"role": "assistant", "content": a}] for n, a in enumerate(answers)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in told))
    quality = stages.parameters(validate.STAGE, tmp_path / "none.yaml", {"json_schema": places[0]})
    made = stages.manifest(stages.run(validate.STAGE, inputs={"data": folder}, parameters=quality, home=tmp_path / "h"))
    assert made.counts["conversations"] == 1
    assert made.dropped == {"answer is no JSON": 1, "answer does not satisfy the schema": 1}
    assert made.parameters["json_schema"] == quality.json_schema


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("nowhere.json", "nowhere.json holds no JSON schema"),
        ("nowhere.py:Plan", "there is no file"),
        ("{here}/broken.py:Plan", "cannot be imported: ZeroDivisionError"),
        ("{here}/workout.py:Plan", "has no Pydantic class Plan"),
        ({"type": "objekt"}, "is no JSON schema"),
    ],
)
def test_what_is_no_schema_is_told_at_once(told: object, message: str, places: list[str], tmp_path: Path) -> None:
    """By the stage's parameters, before it reads a line."""
    del places
    (tmp_path / "broken.py").write_text("1 / 0")
    given = told.format(here=tmp_path) if isinstance(told, str) else told
    with pytest.raises(ValidationError, match=message):
        Quality.model_validate({"json_schema": given})
    with pytest.raises(Misconfigured, match=r"validate\.json_schema"):
        stages.parameters(validate.STAGE, tmp_path / "none.yaml", {"json_schema": json.dumps(given)})
