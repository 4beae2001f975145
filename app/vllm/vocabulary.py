"""The vocabulary of a model that transformers saved, out of tokenizer.json: what app.llama.tokenizer asks for.

So prompts are made by the same code on both engines, and nobody forges a turn on either: the mark in `<|im_end|>` of a
user's text is letters, because the tokenizer that untrusted text meets knows no special tokens at all.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Library

from app.errors import Misconfigured
from app.llama.vocabulary import Tokens

SETTING = "llm.model"
TEMPLATE, CONFIG, JSON = "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"
SPACE = "▁"  # of SentencePiece
NONE = -1


class FolderVocabulary:
    """Tokens of a folder with config.json and tokenizer.json. Shared by threads. A token that there is not is -1.

    Raises Misconfigured where its tokenizer is of a kind that we cannot read bytes from.
    """

    def __init__(self, folder: Path) -> None:
        written = json.loads((folder / JSON).read_text(encoding="utf-8"))
        self._config = _read(folder / CONFIG)
        self._adds_space = _drop_prefix(written)
        added = {token["id"]: token for token in written.get("added_tokens") or []}
        self._special = {at: str(token["content"]) for at, token in added.items() if token["special"]}
        self._marks = {at: str(token["content"]) for at, token in added.items() if not token["special"]}
        self._with_marks = _library(written)
        self._plain = _library(written | {"added_tokens": [], "post_processor": None})
        self._ids: dict[str, int] = self._with_marks.get_vocab(with_added_tokens=True)
        self._pieces = self._all_pieces(written, folder)
        self._template = _template(folder, self._config)
        model = _read(folder / "config.json")
        inner = model.get("text_config") or model
        self.vocab_size = int(inner.get("vocab_size") or len(self._pieces))
        told = (model, inner, _read(folder / "generation_config.json"))
        self.endings = frozenset(
            {at for one in told for at in _numbers(one.get("eos_token_id"))} | {self.eos()} - {NONE}
        )

    def tokenize(self, text: str, *, special: bool) -> Tokens:
        """Tokens of a text, nothing added. special: marks like <|im_end|> in it become the tokens that they name."""
        library = self._with_marks if special else self._plain
        text = text.encode(errors="replace").decode()  # a lone surrogate is no text to the library
        return np.array(library.encode(text, add_special_tokens=False).ids, np.int32)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; of a control token, and of padding behind the vocabulary, none."""
        return self._pieces.get(token, b"")

    def speak(self, mark: str) -> None:
        """Let a mark be heard: where one control token is written so, its bytes are part of the answer."""
        if mark in self._ids:
            self._pieces[self._ids[mark]] = mark.encode()

    def name(self, token: int) -> str:
        """How a token is written, control tokens too: <|im_end|>. Of no token: empty."""
        return self._special.get(token) or self._pieces.get(token, b"").decode(errors="replace")

    def controls(self, token: int) -> bool:
        """Whether a token is a control token, like <|im_end|>."""
        return token in self._special

    def bos(self) -> int:
        """The token that begins a text."""
        return self._named("bos_token")

    def eos(self) -> int:
        """The token that ends a text."""
        return self._named("eos_token")

    def adds_bos(self) -> bool:
        """Whether the model wants every text to begin with `bos`."""
        begun = self._with_marks.encode("", add_special_tokens=True).ids
        return bool(begun) and begun[0] == self.bos()

    def adds_space(self) -> bool:
        """Whether the model was trained on texts with a space put in front (SentencePiece's dummy prefix)."""
        return self._adds_space

    def marks(self) -> dict[int, str]:
        """Tokens that are written as markup although they are not control tokens."""
        return self._marks

    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, None where there is none."""
        return self._template

    def _named(self, name: str) -> int:
        told = self._config.get(name)
        text = told.get("content") if isinstance(told, dict) else told
        return self._ids.get(str(text), NONE) if text else NONE

    def _all_pieces(self, written: dict[str, Any], folder: Path) -> dict[int, bytes]:
        parts = [kind for name in ("decoder", "pre_tokenizer", "normalizer") for kind in _kinds(written.get(name))]
        if "ByteLevel" in parts:
            letters = {letter: byte for byte, letter in enumerate(byte_letters())}
            read = {at: _bytes(text, letters) for text, at in self._ids.items()}
        elif "Metaspace" in parts or _replaces_space(written.get("normalizer")):
            read = {at: _sentencepiece(text) for text, at in self._ids.items()}
        else:
            problem = f"the tokenizer of {folder} is neither byte-level nor SentencePiece's"
            raise Misconfigured(SETTING, problem, "Serve another model, or this one as a GGUF on llama.cpp")
        marks = {at: text.encode() for at, text in self._marks.items()}
        return read | marks | dict.fromkeys(self._special, b"")


def byte_letters() -> list[str]:
    """The letter by which byte-level vocabularies write each byte, as GPT-2 did."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def _library(written: dict[str, Any]) -> Library:
    library = Library.from_str(json.dumps(written))
    library.no_truncation()
    library.no_padding()
    return library


def _drop_prefix(written: dict[str, Any]) -> bool:
    """Have the library put no space in front: a prompt is tokenised in pieces. Returns whether it would have."""
    found = False
    for name in ("normalizer", "pre_tokenizer"):
        part = written.get(name) or {}
        key = "normalizers" if name == "normalizer" else "pretokenizers"
        parts = part.get(key, []) if part.get("type") == "Sequence" else [part]
        prepended = [one for one in parts if one.get("type") == "Prepend"]
        found |= bool(prepended)
        if prepended:
            written[name] = {"type": "Sequence", key: [one for one in parts if one.get("type") != "Prepend"]}
        for one in parts:
            if one.get("type") == "Metaspace":
                found |= one.get("prepend_scheme", "always") != "never" and one.get("add_prefix_space", True)
                one.pop("add_prefix_space", None)
                one["prepend_scheme"] = "never"
            elif one.get("type") == "ByteLevel":
                found |= bool(one.get("add_prefix_space"))
                one["add_prefix_space"] = False
    return found


def _kinds(part: Any) -> list[str]:
    """The types of a part of a tokenizer.json, which may be a sequence."""
    if not part:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders") or []
    return [str(part["type"]), *(kind for one in inner for kind in _kinds(one))]


def _replaces_space(normalizer: Any) -> bool:
    return SPACE in json.dumps(normalizer, ensure_ascii=False)


def _bytes(text: str, letters: dict[str, int]) -> bytes:
    return bytes(letters[letter] for letter in text) if letters.keys() >= set(text) else text.encode()


def _sentencepiece(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode()


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json; of several the one called default."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    told = config.get("chat_template")
    if isinstance(told, list):
        told = next((one["template"] for one in told if one.get("name") == "default"), None)
    return told if isinstance(told, str) else None


def _numbers(told: Any) -> list[int]:
    return [told] if isinstance(told, int) else list(told or [])


def _read(file: Path) -> dict[str, Any]:
    """A JSON object of a file; empty where there is none."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
