"""OpenAI's published schemas, to which our responses and stream events are held.

    validate("Response", body)          # one object
    validate_event(event)               # one event of a Responses stream, by its `type`

tests/data/openai-schema.json is a part of OpenAI's OpenAPI document (2.3.0, MIT licence,
https://github.com/openai/openai-openapi): the components below and what they refer to, without prose.

    python -m tests.openai_schema openai-openapi.json      # makes it anew
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

FILE = Path(__file__).parent / "data" / "openai-schema.json"
COMPONENTS = (
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse",
    "CreateEmbeddingResponse",
    "DeleteFileResponse",
    "DeleteModelResponse",
    "DeleteVectorStoreFileResponse",
    "DeleteVectorStoreResponse",
    "ErrorResponse",
    "FineTuningJob",
    "ListFilesResponse",
    "ListFineTuningJobCheckpointsResponse",
    "ListFineTuningJobEventsResponse",
    "ListModelsResponse",
    "ListPaginatedFineTuningJobsResponse",
    "ListVectorStoreFilesResponse",
    "ListVectorStoresResponse",
    "Model",
    "OpenAIFile",
    "Response",
    "ResponseItemList",
    "ResponseStreamEvent",
    "TokenCountsResource",
    "VectorStoreFileBatchObject",
    "VectorStoreFileContentResponse",
    "VectorStoreFileObject",
    "VectorStoreObject",
    "VectorStoreSearchResultsPage",
)
PROSE = frozenset({"description", "title", "example", "examples", "externalDocs", "default"})
REFERENCE = "#/components/schemas/"


def validate(component: str, value: Any) -> None:
    """Raises ValidationError where a value is not what OpenAI says that it is."""
    _validator(component).validate(value)


def validate_event(event: dict[str, Any]) -> None:
    """The same for an event of a Responses stream."""
    validate(_events()[event["type"]], event)


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return document


@cache
def _validator(component: str) -> Draft202012Validator:
    resource = Resource.from_contents(_document(), default_specification=DRAFT202012)
    registry = Registry().with_resource("openai:", resource)
    return Draft202012Validator({"$ref": f"openai:{REFERENCE}{component}"}, registry=registry)


@cache
def _events() -> dict[str, str]:
    """The component of each type of event. Its discriminator is of no use: `anyOf` would hide what is wrong."""
    schemas = _document()["components"]["schemas"]
    names = [one["$ref"].removeprefix(REFERENCE) for one in schemas["ResponseStreamEvent"]["anyOf"]]
    return {schemas[name]["properties"]["type"]["enum"][0]: name for name in names}


def trimmed(document: dict[str, Any]) -> dict[str, Any]:
    """The components and what they refer to. `nullable`, which OpenAPI 3.1 has no more, becomes a type of null."""
    schemas = document["components"]["schemas"]
    wanted, kept = list(COMPONENTS), {}
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = _plain(schemas[name])
            wanted += [reference.removeprefix(REFERENCE) for reference in _references(kept[name])]
    return {"components": {"schemas": dict(sorted(kept.items()))}}


def _plain(schema: Any, *, named: bool = False) -> Any:
    """A schema without prose. named: the keys are names of properties, not keywords.

    `exclusiveMinimum: true` is JSON Schema's of 2013, which makes the minimum an exclusive one.
    """
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: _plain(value, named=key in {"properties", "patternProperties"} and not named)
        for key, value in schema.items()
        if named or not (key in PROSE or key.startswith("x-") or key in {"nullable", "discriminator"})
    }
    if not named and plain.get("exclusiveMinimum") is True:
        plain["exclusiveMinimum"] = plain.pop("minimum")
    return {"anyOf": [plain, {"type": "null"}]} if not named and schema.get("nullable") is True else plain


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for one in schema:
            yield from _references(one)
    elif isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for one in schema.values():
            yield from _references(one)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    made = trimmed(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    FILE.write_text(json.dumps(made, separators=(",", ":")) + "\n", "utf-8")
