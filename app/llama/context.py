"""The KV cache of many sequences, and the batch that is fed to it. One thread at a time."""

import ctypes

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one
import numpy as np
from numpy.typing import NDArray

from app.errors import Misconfigured
from app.llama.model import Model, Tokens

NO_ROOM = 1  # llama_decode: no free cells for the batch, nothing was changed


class Context:
    """One cache of `cells` tokens, which `slots` sequences share, and a batch of at most `batch_tokens` tokens.

    The batch is built row by row in arrays that llama.cpp reads in place.
    """

    def __init__(self, model: Model, *, cells: int, slots: int, batch_tokens: int, threads: int) -> None:
        params = C.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells, slots, True
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_outputs_max = slots
        params.n_threads = params.n_threads_batch = threads
        self.handle = C.llama_init_from_model(model.handle, params)
        if not self.handle:
            remedy = "Lower llm.window, llm.slots or llm.cache_tokens"
            raise Misconfigured("llm.window", f"no memory for a cache of {cells} tokens", remedy)
        self._memory = C.llama_get_memory(self.handle)
        self._model = model  # must outlive the context
        self._make_batch(slots, batch_tokens)

    def _make_batch(self, slots: int, size: int) -> None:
        self.size, self.rows = size, 0
        self._token = np.zeros(size, np.int32)
        self._position = np.zeros(size, np.int32)
        self._one = np.ones(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._slots = np.arange(slots, dtype=np.int32)
        self._slot_addresses = self._slots.ctypes.data + self._slots.itemsize * np.arange(slots, dtype=np.uintp)
        self._slot = np.full(size, self._slots.ctypes.data, np.uintp)  # llama.cpp wants a pointer to each row's slot
        self._batch = C.llama_batch(
            token=self._token.ctypes.data_as(ctypes.POINTER(C.llama_token)),
            pos=self._position.ctypes.data_as(ctypes.POINTER(C.llama_pos)),
            n_seq_id=self._one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._slot.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(C.llama_seq_id))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def close(self) -> None:
        """Free the cache."""
        C.llama_free(self.handle)
        self.handle = None

    def add_token(self, slot: int, token: int, position: int) -> int:
        """Put a sequence's newest token into the batch; get the row at which the next one can be sampled."""
        row = self.rows
        self._token[row], self._position[row], self._wanted[row] = token, position, 1
        self._slot[row] = self._slot_addresses[slot]
        self.rows = row + 1
        return row

    def add_chunk(self, slot: int, tokens: Tokens, position: int, *, last: bool) -> int:
        """Put a stretch of a prompt into the batch; get its last row. last: then the answer can be sampled there."""
        start, end = self.rows, self.rows + len(tokens)
        self._token[start:end] = tokens
        self._position[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._slot[start:end] = self._slot_addresses[slot]
        self._wanted[start:end] = 0
        self._wanted[end - 1] = last
        self.rows = end
        return end - 1

    def decode(self) -> int:
        """Run the batch and empty it. Returns llama_decode's code: 0 done, NO_ROOM, or a failure."""
        self._batch.n_tokens, self.rows = self.rows, 0
        code: int = C.llama_decode(self.handle, self._batch)
        return code

    def logits(self, row: int) -> NDArray[np.float32]:
        """What the model expects after a row of the last batch: a view, valid until the next decode. [vocabulary]"""
        found = C.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(found, shape=(self._model.vocab_size,))

    def forget(self, slot: int) -> None:
        """Free the cells of a sequence."""
        C.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def held(self, slot: int) -> int:
        """Number of tokens that the cache holds of a sequence."""
        return int(C.llama_memory_seq_pos_max(self._memory, slot)) + 1
