"""Profiles: small configurations that say what differs from another one, which they name in `extends:`.

    extends: ../serve_config.yaml          # beside this file; it may extend a further one
    applications:
      mindfu:                              # entries of a list go by their `name`
        args: {llm: {window: 8192}}        # said anew
        deployments:
          LlamaCpp: null                   # taken away
          Vllm: {num_replicas: 1}          # added, or changed where it is there

These are the rules of JSON Merge Patch (RFC 7396), and that lists whose entries have names are merged by them; any
other list is replaced. Taking away what is not there is a mistake here, and not in the RFC.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from app.errors import Misconfigured
from app.settings import IMPORT_PATH, Secrets

EXTENDS = "extends"
Config = dict[str, Any]


def resolved(path: Path) -> Config:
    """The whole configuration that a file amounts to, for `serve run` and `serve deploy`. A file that extends none is
    that already.

    Raises Misconfigured where a file of the chain cannot be read, is no mapping, comes twice, or takes away what is not
    there.
    """
    return _resolved(path, ())


def placed(config: Config, secrets: Secrets) -> Config:
    """The same without places for parts that the graph lacks, which Serve refuses: the VectorStore, where Qdrant is a
    server.
    """
    if secrets.qdrant_url is None:
        return config
    return config | {"applications": [_without_vector_store(one) for one in config.get("applications", [])]}


def _without_vector_store(application: Config) -> Config:
    parts = application.get("deployments")
    if application.get("import_path") != IMPORT_PATH or not parts:
        return application
    return application | {"deployments": [part for part in parts if part.get("name") != "VectorStore"]}


def _resolved(path: Path, seen: tuple[Path, ...]) -> Config:
    file = path.resolve()
    if file in seen:
        chain = " → ".join(one.name for one in (*seen, file))
        raise Misconfigured(
            f"{path}: {EXTENDS}", f"the files extend each other: {chain}", "Let one of them extend none."
        )
    config = _read(path)
    base = config.pop(EXTENDS, None)
    if base is None:
        return config
    if not isinstance(base, str):
        raise Misconfigured(f"{path}: {EXTENDS}", f"is {base!r}", "Name one file, from the folder of this one.")
    under = _resolved(path.parent / base, (*seen, file))
    merged: Config = _merged(under, config, f"{path}: ")
    return merged


def _read(path: Path) -> Config:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Misconfigured(str(path), f"it cannot be read: {error}", "Name a YAML file.") from error
    if not isinstance(config, dict):
        remedy = f"It must hold a mapping with the key 'applications', or with '{EXTENDS}'."
        raise Misconfigured(str(path), f"it holds {type(config).__name__}, no mapping", remedy)
    return config


def _merged(base: Any, change: Any, where: str) -> Any:
    if not isinstance(change, Mapping):
        return change
    if _has_names(base):
        entries = _merged({entry["name"]: entry for entry in base}, change, where)
        return [{"name": name} | entry for name, entry in entries.items()]
    found = dict(base) if isinstance(base, Mapping) else {}
    for key, value in change.items():
        place = f"{where}{key}"
        if value is not None:
            found[key] = _merged(found.get(key), value, f"{place}.")
        elif key in found:
            del found[key]
        else:
            raise Misconfigured(
                place, "there is nothing to take away", "Name what the other file has, or leave it out."
            )
    return found


def _has_names(base: Any) -> bool:
    return isinstance(base, list) and bool(base) and all(isinstance(one, dict) and "name" in one for one in base)
