"""LoRA adapters beside the base: GGUFs that are loaded and unloaded while the engine answers.

Loading, switching and freeing touch what decoding reads, so the step loop's thread does them.
"""

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one

from app.errors import InvalidRequest, ModelNotFound
from app.llama.model import Model, library
from app.llama.styles import TAUGHT_BY


class Adapter:
    """One adapter in memory. served_by: the name of the chat template (styles.py); None: nobody chats.

    Raises InvalidRequest where the file is none for this model, or says that it was taught by another template.
    """

    def __init__(self, model: Model, name: str, path: Path, scale: float, served_by: str | None = None) -> None:
        self.name, self.scale = name, scale
        self.users = 0  # requests that named it and are not over
        self.unused: Future[None] = Future()  # done when the last of them is, once it is removed
        self.removed = False
        self._model = model  # must outlive the adapter
        library().errors.clear()
        self.handle = C.llama_adapter_lora_init(model.handle, str(path).encode())
        if not self.handle:
            message = f"{path} is no LoRA adapter for {model.path.name}: {library().reason()}."
            raise InvalidRequest(message, "adapter")
        if C.llama_adapter_get_alora_n_invocation_tokens(self.handle):
            self.free()
            raise InvalidRequest(
                f"{path} is an activated LoRA, which is not supported here. Use a plain one.", "adapter"
            )
        taught_by = self._told(TAUGHT_BY)
        if served_by is not None and taught_by not in {None, served_by}:
            self.free()
            message = (
                f"{path} was taught by the chat template '{taught_by}', and '{served_by}' serves here: "
                "set llm.chat_template to what tune.chat_template was, roll back (mindfu rollback), or train anew."
            )
            raise InvalidRequest(message, "adapter")

    def _told(self, key: str) -> str | None:
        """What its file says under a key."""
        text = ctypes.create_string_buffer(64)
        size = C.llama_adapter_meta_val_str(self.handle, key.encode(), text, len(text))
        return text.value.decode(errors="replace") if size >= 0 else None

    def free(self) -> None:
        """Give its memory back. No context may use it any more."""
        C.llama_adapter_lora_free(self.handle)
        self.handle = None


class Adapters:
    """The adapters that requests may name. Shared by threads. model: the served name, for errors."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._loaded: dict[str, Adapter | None] = {}  # None: being loaded

    def names(self) -> tuple[str, ...]:
        """In the order in which they were loaded."""
        with self._lock:
            return tuple(name for name, adapter in self._loaded.items() if adapter)

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Take a name, until `add` or the end of this. Raises InvalidRequest where it is taken."""
        with self._lock:
            if name in self._loaded:
                raise InvalidRequest(
                    f"An adapter '{name}' is loaded already. Unload it first, or use another name.", "adapter"
                )
            self._loaded[name] = None
        try:
            yield
        finally:
            with self._lock:
                if not self._loaded[name]:
                    del self._loaded[name]

    def add(self, adapter: Adapter) -> None:
        """From now on requests may name it."""
        with self._lock:
            self._loaded[adapter.name] = adapter

    @contextmanager
    def borrowed(self, name: str | None) -> Iterator[Adapter | None]:
        """The adapter of a request, which stays as long as that lasts; None for the bare base. Raises ModelNotFound."""
        if name is None:
            yield None
            return
        with self._lock:
            adapter = self._find(name)
            adapter.users += 1
        try:
            yield adapter
        finally:
            with self._lock:
                adapter.users -= 1
                self._tell_when_unused(adapter)

    def remove(self, name: str) -> Adapter:
        """Refuse the name from now on: `unused` tells when nobody needs the adapter. Raises ModelNotFound."""
        with self._lock:
            adapter = self._find(name)
            del self._loaded[name]
            adapter.removed = True
            self._tell_when_unused(adapter)
            return adapter

    def _tell_when_unused(self, adapter: Adapter) -> None:
        if adapter.removed and not adapter.users:
            adapter.unused.set_result(None)

    def _find(self, name: str) -> Adapter:
        adapter = self._loaded.get(name)
        if adapter is None:
            known = (self._model, *(f"{self._model}:{other}" for other in self._loaded))
            raise ModelNotFound(f"{self._model}:{name}", known)
        return adapter
