"""params.yaml: what the stages of the learning loop are told, one section each."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import yaml

from app.errors import Misconfigured
from app.runs import Parameters, StageName

STAGES: tuple[StageName, ...] = get_args(StageName)


def read(file: Path) -> Parameters:
    """The sections of the stages that a run has; nothing where there is no file. Raises Misconfigured."""
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise Misconfigured(str(file), f"it cannot be read ({reason})", "Write one section for each stage.") from error
    if told is not None and not isinstance(told, dict):
        raise Misconfigured(str(file), "it is no YAML of sections", "Write one section for each stage.")
    return {name: section for name in STAGES if isinstance(section := (told or {}).get(name), dict)}


def changed(parameters: Parameters, changes: Mapping[StageName, Mapping[str, object]]) -> Parameters:
    """The same with other values, by stage and name. A section within a stage's is changed name by name, too."""
    made: dict[str, dict[str, object]] = {name: dict(section) for name, section in parameters.items()}
    for stage, section in changes.items():
        _merge(made.setdefault(stage, {}), section)
    return made  # type: ignore[return-value]  # of JSON, as long as what was given is


def _merge(into: dict[str, object], given: Mapping[str, object]) -> None:
    for name, value in given.items():
        known = into.get(name)
        if isinstance(value, Mapping) and isinstance(known, dict):
            into[name] = _merged(known, value)
        else:
            into[name] = value


def _merged(known: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    made = dict(known)
    _merge(made, given)
    return made
