"""SQL lives in .sql files beside the module that runs it: `-- name: purpose`, the statement, the next name."""

import re
from importlib.resources import files
from types import MappingProxyType

HEADING = re.compile(r"^-- (\w+): .*\n", re.MULTILINE)


def queries(file: str) -> MappingProxyType[str, str]:
    """The statements of app/<file>, by name."""
    _, *pairs = HEADING.split(files("app").joinpath(file).read_text("utf-8"))
    return MappingProxyType(dict(zip(pairs[::2], (statement.strip() for statement in pairs[1::2]), strict=True)))
