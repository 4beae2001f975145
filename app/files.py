"""The original bytes of documents, one file each: <home>/files/<first two digits of the SHA-256>/<document id>."""

import contextlib
import os
from pathlib import Path

from app.errors import Unavailable
from app.messages import Document


class Files:
    """The folder. Its methods block: call them in a thread."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "files"

    def path(self, document: Document) -> Path:
        """Where its bytes are, or would be."""
        return self._folder / document.sha256[:2] / document.id

    def keep(self, document: Document, data: bytes) -> None:
        """On disk when this returns, whole or not at all. Raises Unavailable: the disk is full or broken."""
        path = self.path(document)
        partial = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            for folder in (path.parent, self._folder, self._folder.parent):
                _sync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise Unavailable("file store", error.strerror or str(error)) from error

    def drop(self, document: Document) -> None:
        """Gone when this returns, a partial one as well. What is not there is gone. Raises Unavailable."""
        path = self.path(document)
        try:
            path.with_suffix(".part").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            if path.parent.exists():
                _sync(path.parent)
        except OSError as error:
            raise Unavailable("file store", error.strerror or str(error)) from error


def _sync(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
