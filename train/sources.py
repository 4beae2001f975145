"""The code that a stage runs, as one hash: its module and whatever that imports of ours, found by reading the sources.

A change in any of them makes a stage's earlier results stale. Other people's packages are not part of it: their
versions stand in uv.lock.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("train", "app")


@cache
def fingerprint(module: str) -> str:
    """SHA-256 over the sources of a module and of what it imports of ours, directly or not. module: dotted."""
    total = hashlib.sha256()
    for name in sorted(reached(module)):
        total.update(name.encode() + b"\0" + hashlib.sha256(_files(name)).digest())
    return total.hexdigest()


def reached(module: str) -> set[str]:
    """The modules of ours that a module needs, itself included."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in reached or _path(name) is None:
            continue
        reached.add(name)
        waiting += _imports(name)
    return reached


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(_path_of(module).read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGES))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGES):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _path(module: str) -> Path | None:
    """Where a module of ours lies; None: it is no module, but a name in one, or not ours."""
    if module.split(".", maxsplit=1)[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*module.split("."))
    package = path / "__init__.py"
    return package if package.is_file() else file if (file := path.with_suffix(".py")).is_file() else None


def _path_of(module: str) -> Path:
    path = _path(module)
    assert path is not None
    return path


def _files(module: str) -> bytes:
    """A module's source, and the statements that lie beside it in a .sql file of its name."""
    path = _path_of(module)
    statements = path.with_suffix(".sql")
    return path.read_bytes() + (statements.read_bytes() if statements.exists() else b"")
