"""The LoRA adapters that requests may name, and who uses them. Of one event loop, and without vLLM.

A version is loaded under an id of its own, which never comes back: vLLM keeps what it has of an id forever.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import InvalidRequest, ModelNotFound

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(eq=False, slots=True)
class Adapter:
    """One version. id: vLLM's. folder: as PEFT wrote it."""

    name: str
    id: int
    folder: Path
    ready: bool = False
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)


class Adapters:
    """Those of one engine. model: the served name, for errors."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._known: dict[str, Adapter] = {}
        self._last = 0

    def names(self) -> tuple[str, ...]:
        """In the order in which they were loaded."""
        return tuple(adapter.name for adapter in self._known.values() if adapter.ready)

    @contextmanager
    def loading(self, name: str, folder: Path) -> Iterator[Adapter]:
        """A new adapter, which can be named when the block ends well. Raises InvalidRequest where the name is taken."""
        if name in self._known:
            message = f"An adapter '{name}' is loaded already. Unload it first, or use another name."
            raise InvalidRequest(message, "adapter")
        self._last += 1
        adapter = self._known[name] = Adapter(name, self._last, folder)
        try:
            yield adapter
            adapter.ready = True
        finally:
            if not adapter.ready:
                del self._known[name]

    @contextmanager
    def borrowed(self, name: str | None) -> Iterator[Adapter | None]:
        """The adapter of a request, which stays as long as that lasts; None for the bare base. Raises ModelNotFound."""
        if name is None:
            yield None
            return
        adapter = self._find(name)
        adapter.users += 1
        try:
            yield adapter
        finally:
            adapter.users -= 1
            if not adapter.users:
                adapter.unused.set()

    async def removed(self, name: str) -> Adapter:
        """Refuse the name from now on; returns when nobody uses the adapter any more. Raises ModelNotFound."""
        adapter = self._find(name)
        del self._known[name]
        while adapter.users:
            adapter.unused.clear()
            await adapter.unused.wait()
        return adapter

    def _find(self, name: str) -> Adapter:
        adapter = self._known.get(name)
        if adapter is None or not adapter.ready:
            known = (self._model, *(f"{self._model}:{other}" for other in self.names()))
            raise ModelNotFound(f"{self._model}:{name}", known)
        return adapter


def peft_folder(file: Path, max_rank: int) -> Path:
    """What PEFT wrote of an adapter: the folder beside its GGUF, of the same name. file: the GGUF, or that folder.

    Raises InvalidRequest where it is not there, or its rank is higher than there is room for.
    """
    folder = file.with_suffix("") if file.suffix == ".gguf" else file
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        message = (
            f"{folder} has no {' and no '.join(missing)}. vLLM reads adapters as PEFT writes them: "
            "put that folder beside the GGUF, as publishing does."
        )
        raise InvalidRequest(message, "adapter")
    try:
        rank = int(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["r"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{folder / CONFIG} is no configuration of a LoRA adapter.", "adapter") from error
    if rank > max_rank:
        message = f"The adapter's rank is {rank}, llm.max_lora_rank is {max_rank}. Raise it, or tune with a lower rank."
        raise InvalidRequest(message, "adapter")
    return folder
