"""A JSON schema as a parameter: the schema itself, or where it stands.

    json_schema: {type: object, required: [name]}
    json_schema: schemas/plan.json                 a file that holds one
    json_schema: schemas/plan.py:Plan              a class of Pydantic in a file

So one class says what the answers of a domain are: to a teacher who writes them (train/generate.py), to the check of
what is learnt (train/validate.py), and as `response_format` to the clients of the model that learnt it. The schema
itself goes into the stage's manifest and key, not its place.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated

import jsonschema
from pydantic import BaseModel, BeforeValidator

from app.messages import JsonSchema


def read(told: object) -> object:
    """The schema that is told, or that stands where is told. Raises ValueError where there is none."""
    schema = told if not isinstance(told, str) else _of_class(told) if ".py:" in told else _of_file(Path(told))
    if isinstance(schema, dict):
        try:
            jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"it is no JSON schema: {error.message}") from error
    return schema


Domain = Annotated[JsonSchema, BeforeValidator(read)]


def _of_file(path: Path) -> object:
    try:
        return json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no JSON schema: {error}") from error


def _of_class(place: str) -> object:
    file, _, name = place.rpartition(":")
    path = Path(file).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(f"mindfu_domain_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Pydantic looks for what annotations name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file raises
        raise ValueError(f"{path} cannot be imported: {error!r}") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ValueError(f"{path} has no Pydantic class {name}")  # noqa: TRY004 - what Pydantic turns into an answer
    return found.model_json_schema()
