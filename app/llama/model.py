"""A GGUF in memory: its weights, vocabulary and metadata, through llama.cpp's C API. Shared by threads, read only.

llama.cpp's own messages go to Python's logging, logger `app.llama.model`, at debug level.
"""

import ctypes
import logging
import weakref
from collections import deque
from functools import cache, cached_property
from pathlib import Path

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one
import numpy as np

from app.errors import Misconfigured
from app.llama import devices
from app.llama.openings import Openings, openings
from app.llama.vocabulary import Tokens
from app.settings import LLMSettings

log = logging.getLogger(__name__)
ERROR = 4  # GGML_LOG_LEVEL_ERROR
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"


class Library:
    """llama.cpp as loaded into this process. Its error messages are kept, to explain a failure."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=5)
        self._on_message = C.llama_log_callback(self._log)  # must outlive the library's use of it
        C.llama_log_set(self._on_message, None)
        C.llama_backend_init()

    def _log(self, level: int, text: bytes, _: object) -> None:
        message = text.decode(errors="replace").rstrip()
        if level == ERROR and message:
            self.errors.append(message)
        if message.strip("."):  # a line of dots shows progress
            log.debug("%s", message)

    def reason(self) -> str:
        """The last error messages, for people."""
        return "; ".join(self.errors) or "llama.cpp gave no reason"


@cache
def library() -> Library:
    """llama.cpp, set up at first use."""
    return Library()


class Model:
    """Weights and vocabulary of one GGUF, freed when nobody holds them.

    settings: of which its place on GPUs is taken; None: main memory only. Raises Misconfigured.
    """

    def __init__(self, path: Path, settings: LLMSettings | None = None) -> None:
        self.path = path
        self._library = library()
        self._library.errors.clear()
        settings = settings or LLMSettings()
        params = C.llama_model_default_params()
        kept = devices.place(params, devices.chosen(settings), settings)
        # A prompt is tokenised in pieces, and llama.cpp would begin each with a space: the tokenizer does it, once.
        overrides = (C.llama_model_kv_override * 2)()
        overrides[0].tag, overrides[0].key = C.LLAMA_KV_OVERRIDE_TYPE_BOOL, SPACE_PREFIX.encode()
        overrides[0].value.val_bool = False
        params.kv_overrides = overrides
        self.handle = C.llama_model_load_from_file(str(path).encode(), params)
        del kept  # the parameters point to it, and llama.cpp has read them
        if not self.handle:
            raise Misconfigured("llm.model", f"{path} does not load ({self._library.reason()})", "Use another GGUF")
        weakref.finalize(self, C.llama_model_free, self.handle).atexit = False
        self.vocab = C.llama_model_get_vocab(self.handle)
        self.vocab_size: int = C.llama_vocab_n_tokens(self.vocab)
        self.trained_window: int = C.llama_model_n_ctx_train(self.handle)
        self.parameters: int = C.llama_model_n_params(self.handle)
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, special: bool) -> Tokens:
        """Tokens of a text, nothing added. special: marks like <|im_end|> in it become the tokens that they name."""
        data = text.encode(errors="replace")
        tokens = np.empty(len(data) + 16, np.int32)  # a token is at least a byte, but for normalising vocabularies
        count = self._tokenize(data, tokens, special)
        if count < 0:
            tokens = np.empty(-count, np.int32)
            count = self._tokenize(data, tokens, special)
        return tokens[:count].copy()

    def _tokenize(self, data: bytes, into: Tokens, special: bool) -> int:
        room = into.ctypes.data_as(C.llama_token_p)
        count: int = C.llama_tokenize(self.vocab, data, len(data), room, len(into), False, special)
        return count

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; of a control token none."""
        known = self._pieces.get(token)
        return self._pieces.setdefault(token, self._piece(token, special=False)) if known is None else known

    def speak(self, mark: str) -> None:
        """Let a mark be heard: where one control token is written so, its bytes are part of the answer."""
        tokens = self.tokenize(mark, special=True)
        if len(tokens) == 1:
            self._pieces[int(tokens[0])] = mark.encode()

    def name(self, token: int) -> str:
        """How a token is written, control tokens too: <|im_end|>. Of no token (-1): empty."""
        return self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""

    def _piece(self, token: int, *, special: bool) -> bytes:
        for size in (64, 4096):
            buffer = ctypes.create_string_buffer(size)
            length: int = C.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
        raise AssertionError(f"token {token} is longer than 4096 bytes")

    def ends(self, token: int) -> bool:
        """Whether a token ends the answer."""
        return bool(C.llama_vocab_is_eog(self.vocab, token))

    @cached_property
    def endings(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return tuple(token for token in range(self.vocab_size) if self.ends(token))

    @cached_property
    def openings(self) -> Openings:
        """Which tokens begin with which character."""
        silent = self.controls, self.ends
        tokens = range(self.vocab_size)
        return openings([b"" if any(of(one) for of in silent) else self._piece(one, special=True) for one in tokens])

    def controls(self, token: int) -> bool:
        """Whether a token is a control token, like <|im_end|>."""
        return bool(C.llama_vocab_is_control(self.vocab, token))

    def bos(self) -> int:
        """The token that begins a text, -1 where there is none."""
        return int(C.llama_vocab_bos(self.vocab))

    def eos(self) -> int:
        """The token that ends a text, -1 where there is none."""
        return int(C.llama_vocab_eos(self.vocab))

    def adds_bos(self) -> bool:
        """Whether the model wants every text to begin with `bos`."""
        return bool(C.llama_vocab_get_add_bos(self.vocab))

    def adds_space(self) -> bool:
        """Whether the model was trained on texts with a space put in front (SentencePiece's dummy prefix)."""
        if C.llama_vocab_type(self.vocab) != C.LLAMA_VOCAB_TYPE_SPM:
            return False
        return self.metadata(SPACE_PREFIX) != "false"

    def marks(self) -> dict[int, str]:
        """Tokens that are written as markup although they are not control tokens (GGUF: user defined)."""
        attributes = ((token, C.llama_vocab_get_attr(self.vocab, token)) for token in range(self.vocab_size))
        defined = (token for token, attribute in attributes if attribute & C.LLAMA_TOKEN_ATTR_USER_DEFINED)
        return {token: self.name(token) for token in defined}

    def metadata(self, key: str) -> str | None:
        """A value of the GGUF's metadata, as text."""
        buffer = ctypes.create_string_buffer(8192)
        found: int = C.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if found >= 0 else None

    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, None where the GGUF has none."""
        source: bytes | None = C.llama_model_chat_template(self.handle, None)
        return None if source is None else source.decode()

    @property
    def sliding_window(self) -> int:
        """How many tokens some layers see at most, their own included, and keep; the whole window where none slides."""
        return int(C.llama_model_n_swa(self.handle)) or self.trained_window

    def keeps_every_token(self) -> bool:
        """Whether the cache has a cell for each token, so that beginnings can be shared; a recurrent state has none."""
        return not (C.llama_model_is_recurrent(self.handle) or C.llama_model_is_hybrid(self.handle))

    def description(self) -> str:
        """What the model says it is."""
        buffer = ctypes.create_string_buffer(256)
        C.llama_model_desc(self.handle, buffer, len(buffer))
        own = self.metadata("general.description") or self.metadata("general.name")
        return own or buffer.value.decode(errors="replace")
