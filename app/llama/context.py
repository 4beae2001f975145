"""The KV cache of many sequences, and the batch that is fed to it. One thread at a time.

Sequences have cells of their own, or share all of them. A row of the batch costs a look at the mask of every cell that
its sequence might use: its own, or those of all. Shared cells hold a common beginning once, and one long sequence
beside short ones; own cells are faster (docs/engine.md). Where sequences have cells of their own, llama.cpp decodes
neighbours together, in the order of their numbers, and each gap between them costs one more pass over the weights.
"""

import ctypes
from collections.abc import Sequence
from typing import Literal, NamedTuple

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one
import numpy as np
from numpy.typing import NDArray

from app.errors import EngineFailed, Misconfigured
from app.llama.adapters import Adapter
from app.llama.model import Model, library
from app.llama.vocabulary import Tokens
from app.settings import CacheType

NO_ROOM = 1  # llama_decode: no free cells for the batch, nothing was changed
MOST_SEQUENCES = 256  # llama.cpp's own limit

TYPES = {"f16": C.GGML_TYPE_F16, "q8_0": C.GGML_TYPE_Q8_0, "q4_0": C.GGML_TYPE_Q4_0}
FLASH = {
    "auto": C.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": C.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": C.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class Storage(NamedTuple):
    """How the cache stores keys and values, and how they are read."""

    keys: CacheType = "f16"
    values: CacheType = "f16"
    flash: Literal["auto", "on", "off"] = "auto"


class Context:
    """One cache of `cells` tokens for `sequences`, and a batch of at most `batch_tokens` tokens.

    shared: any sequence may use any cell; else each has cells / sequences of its own. In a batch, tokens can be sampled
    at `outputs` rows at most. It is built in arrays that llama.cpp reads in place.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        sequences: int,
        batch_tokens: int,
        threads: int,
        shared: bool = True,
        storage: Storage = Storage(),  # noqa: B008 — it is a constant
    ) -> None:
        self.shared = shared
        params = C.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells, sequences, shared
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_outputs_max = self.outputs = sequences  # fewer llama.cpp does not accept
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = TYPES[storage.keys], TYPES[storage.values]
        params.flash_attn_type = FLASH[storage.flash]
        library().errors.clear()
        self.handle = C.llama_init_from_model(model.handle, params)
        if not self.handle:
            problem = f"llama.cpp makes no cache of {cells} tokens, {storage} ({library().reason()})"
            raise Misconfigured("llm.window", problem, "Lower llm.window, llm.slots or llm.cache_tokens")
        self._memory = C.llama_get_memory(self.handle)
        self._model = model  # must outlive the context
        self._adapter: Adapter | None = None
        self._make_batch(sequences, batch_tokens)

    def _make_batch(self, sequences: int, size: int) -> None:
        self.size, self.rows = size, 0
        self._token = np.zeros(size, np.int32)
        self._position = np.zeros(size, np.int32)
        self._one = np.ones(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._numbers = np.arange(sequences, dtype=np.int32)
        self._addresses = self._numbers.ctypes.data + self._numbers.itemsize * np.arange(sequences, dtype=np.uintp)
        self._sequence = np.full(size, self._addresses[0], np.uintp)  # llama.cpp wants a pointer to each row's sequence
        self._place = np.arange(size)  # of each row, in what llama.cpp was given
        self._batch = C.llama_batch(
            token=self._token.ctypes.data_as(ctypes.POINTER(C.llama_token)),
            pos=self._position.ctypes.data_as(ctypes.POINTER(C.llama_pos)),
            n_seq_id=self._one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._sequence.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(C.llama_seq_id))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def close(self) -> None:
        """Free the cache."""
        C.llama_free(self.handle)
        self.handle = None

    def clear(self) -> None:
        """Begin a new batch."""
        self.rows = 0

    def add(self, sequence: int, tokens: Tokens | list[int], position: int, *, outputs: int | None = None) -> int:
        """Put the next tokens of a sequence into the batch; get their first row.

        outputs: at how many of them, the last ones, tokens are to be sampled; None: at all of them.
        """
        start, end = self.rows, self.rows + len(tokens)
        self._token[start:end] = tokens
        self._position[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._sequence[start:end] = self._addresses[sequence]
        self._wanted[start:end] = 0
        self._wanted[start if outputs is None else end - outputs : end] = 1
        self.rows = end
        return start

    def add_each(self, sequences: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> int:
        """Put one token of each of many sequences into the batch, to be sampled at; get the first row."""
        start, end = self.rows, self.rows + len(tokens)
        self._token[start:end] = tokens
        self._position[start:end] = positions
        self._sequence[start:end] = self._addresses[sequences]
        self._wanted[start:end] = 1
        self.rows = end
        return start

    def decode(self) -> int:
        """Run the batch, which stays as it is. Returns llama_decode's code: 0 done, NO_ROOM, or a failure."""
        if not self.shared:
            self._put_in_order()
        self._batch.n_tokens = self.rows
        code: int = C.llama_decode(self.handle, self._batch)
        return code

    def _put_in_order(self) -> None:
        """Sort the rows by their sequences, those of one as they are."""
        order = np.argsort(self._sequence[: self.rows], kind="stable")
        for column in (self._token, self._position, self._wanted, self._sequence):
            column[: self.rows] = column[order]
        self._place[order] = np.arange(self.rows)

    def place(self, row: int) -> int:
        """Where llama.cpp has a row of the last batch."""
        return int(self._place[row])

    def logits(self, row: int) -> NDArray[np.float32]:
        """What the model expects after a row of the last batch: a view, valid until the next decode. [vocabulary]"""
        found = C.llama_get_logits_ith(self.handle, self.place(row))
        return np.ctypeslib.as_array(found, shape=(self._model.vocab_size,))

    def use(self, adapter: Adapter | None) -> bool:
        """Decode with this adapter from now on; None for the bare base. Returns whether that is a change."""
        if adapter is self._adapter:
            return False
        if adapter is None:
            C.llama_set_adapters_lora(self.handle, None, 0, None)
        else:
            handles = (C.llama_adapter_lora_p_ctypes * 1)(adapter.handle)
            C.llama_set_adapters_lora(self.handle, handles, 1, (ctypes.c_float * 1)(adapter.scale))
        self._adapter = adapter
        return True

    def release(self, adapter: Adapter) -> None:
        """Free an adapter, which nobody will use again."""
        if adapter is self._adapter:
            self.use(None)
        adapter.free()

    def share(self, source: int, target: int, length: int) -> bool:
        """Give an empty sequence the first tokens of another: the same cells, or copies.

        False, and the target stays empty, where the model's cache no longer has all of them (a sliding window).
        """
        if not self.shared:
            return bool(self.restore(target, self.save(source), length))
        C.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return self._whole(target, length)

    def _whole(self, sequence: int, length: int) -> bool:
        """Whether a sequence holds that many tokens, as far back as the next one looks. Else it is empty afterwards."""
        first, last = (get(self._memory, sequence) for get in (C.llama_memory_seq_pos_min, C.llama_memory_seq_pos_max))
        if first <= max(0, length + 1 - self._model.sliding_window) and last == length - 1:
            return True
        self.forget(sequence)
        return False

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of what the cache holds of a sequence, in llama.cpp's own form. [bytes]"""
        size = C.llama_state_seq_get_size(self.handle, sequence)
        saved = np.empty(size, np.uint8)
        written = C.llama_state_seq_get_data(self.handle, _bytes(saved), size, sequence)
        assert written == size, "the size was told a moment ago"
        return saved

    def restore(self, target: int, saved: NDArray[np.uint8], length: int) -> int | None:
        """Give an empty sequence the first tokens of a copy; get how many it holds then.

        0 where the copy does not have all of them (a sliding window), None where cells are wanting.
        """
        if not self._load(target, saved):
            return None
        return length if self.shorten(target, length) else 0

    def shorten(self, sequence: int, length: int) -> bool:
        """Leave a sequence its first tokens. False, and it is empty, where it does not have all (a sliding window)."""
        self.cut(sequence, length)
        return self._whole(sequence, length)

    def _load(self, target: int, saved: NDArray[np.uint8]) -> bool:
        if C.llama_state_seq_set_data(self.handle, _bytes(saved), len(saved), target):
            return True
        self.forget(target)
        return False

    def copy(self, source: int, target: int) -> None:
        """Give an empty sequence all that another one holds: the same cells, or copies."""
        if self.shared:
            C.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        elif not self._load(target, self.save(source)):
            raise EngineFailed(f"llama.cpp did not copy the cache of sequence {source} to {target}")

    def cut(self, sequence: int, length: int) -> None:
        """Take back what a sequence holds behind its first tokens."""
        removed = C.llama_memory_seq_rm(self._memory, sequence, length, -1)
        assert removed, "only models that keep every token speculate"

    def forget(self, sequence: int) -> None:
        """Free a sequence: cells that no other one shares."""
        C.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def held(self, sequence: int) -> int:
        """Number of tokens that the cache holds of a sequence."""
        return int(C.llama_memory_seq_pos_max(self._memory, sequence)) + 1


def _bytes(array: NDArray[np.uint8]) -> "ctypes._Pointer[ctypes.c_uint8]":
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
