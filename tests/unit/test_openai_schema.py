"""The published schemas do refuse what is wrong: a check that cannot fail is none."""

import pytest
from jsonschema import ValidationError

from tests.openai_schema import COMPONENTS, trimmed, validate, validate_event

DELTA = {
    "type": "response.function_call_arguments.delta",
    "item_id": "fc_1",
    "output_index": 0,
    "sequence_number": 3,
    "delta": "{",
}


def test_every_component_refuses_an_empty_object() -> None:
    """Each is there, with all that it refers to."""
    for component in COMPONENTS:
        if component != "ResponseStreamEvent":
            with pytest.raises(ValidationError):
                validate(component, {})


def test_an_event_is_held_to_the_schema_of_its_type() -> None:
    """One key less is refused."""
    validate_event(DELTA)
    with pytest.raises(ValidationError, match="'item_id' is a required property"):
        validate_event({key: value for key, value in DELTA.items() if key != "item_id"})


def test_nullable_is_translated() -> None:
    """OpenAPI 3.1 dropped the keyword that the document still uses."""
    schemas = {name: {"type": "string", "nullable": True, "description": "Prose."} for name in COMPONENTS}
    made = trimmed({"components": {"schemas": schemas}})
    assert made["components"]["schemas"]["Model"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
