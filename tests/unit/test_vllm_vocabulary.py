"""Vocabularies out of tokenizer.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_factory import CHATML, vocabulary
from hf_factory import write_tokenizer

from app.errors import Misconfigured
from app.llama.tokenizer import Tokenizer
from app.messages import Generate, Message
from app.vllm.vocabulary import FolderVocabulary, byte_letters

NAMES = vocabulary()[0]
END = NAMES.index("<|im_end|>")
LLAMA_TEMPLATE = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [END, 3], "vocab_size": 300}))
    return tmp_path


def sentencepiece(folder: Path, normalizer: Any, pre_tokenizer: Any = None) -> FolderVocabulary:
    """Llama 2's kind: letters, bytes, <s> in front of every text."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abchi"]
    special = [
        {"id": at, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False,
         "rstrip": False}
        for at, text in enumerate(tokens[:3])
    ]  # fmt: skip
    model = {"type": "BPE", "vocab": {text: at for at, text in enumerate(tokens)}, "merges": [], "unk_token": "<unk>",
             "byte_fallback": True, "fuse_unk": True}  # fmt: skip
    both = {"special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    processor = {"type": "TemplateProcessing", **both, "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}], "pair": []}  # fmt: skip
    written = {"version": "1.0", "added_tokens": special, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
               "post_processor": processor, "decoder": None, "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(written))
    named = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": LLAMA_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text("{}")
    return FolderVocabulary(folder)


def test_the_templates_marks_are_tokens_and_a_users_are_letters(folder: Path):
    """Both kinds: control tokens, and marks that are not control."""
    one = FolderVocabulary(folder)
    for mark in ("<|im_end|>", "<tool_call>"):
        assert one.tokenize(mark, special=True).tolist() == [NAMES.index(mark)]
        assert [NAMES[token] for token in one.tokenize(mark, special=False)] == list(mark)


def test_what_ends_an_answer_is_told_by_all_of_its_files(folder: Path):
    """config.json, generation_config.json and the tokenizer's own."""
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert FolderVocabulary(folder).endings == {END, 3, 5}
    assert FolderVocabulary(folder).vocab_size == 300


def test_every_token_has_its_bytes(folder: Path):
    """Control tokens have none, until a mark is to be heard; marks that are not control have theirs."""
    one = FolderVocabulary(folder)
    assert [one.piece(token) for token in range(256)] == [bytes([byte]) for byte in range(256)]
    assert one.piece(NAMES.index("Ġt")) == b" t"
    assert (one.piece(END), one.name(END), one.controls(END)) == (b"", "<|im_end|>", True)
    assert one.piece(NAMES.index("<tool_call>")) == b"<tool_call>"
    one.speak("<|im_end|>")
    assert one.piece(END) == b"<|im_end|>"
    assert (one.piece(10**6), one.name(-1)) == (b"", "")


def test_text_comes_back_from_its_tokens(folder: Path):
    """Whatever it is; a lone surrogate is no crash."""
    one = FolderVocabulary(folder)
    for text in ("the lower  house\n\n", "naïve 😀 \x00", "  "):
        assert b"".join(map(one.piece, one.tokenize(text, special=False))) == text.encode()
    assert one.tokenize("\udc80", special=False).tolist() == [ord("?")]


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "spaced"),
    [
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
          {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}, None, True),
        (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, True),
        (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}, False),
    ],
)  # fmt: skip
def test_sentencepieces_space_comes_once_in_front(normalizer: Any, pre_tokenizer: Any, spaced: bool, tmp_path: Path):
    """Not before every piece of a prompt; <s> comes once, whoever writes it."""
    one = sentencepiece(tmp_path, normalizer, pre_tokenizer)
    assert (one.adds_space(), one.adds_bos()) == (spaced, True)
    assert b"".join(map(one.piece, one.tokenize("hi a", special=False))) == b"hi a"
    tokenizer = Tokenizer(one)
    chat = Generate(request_id="r", model="m", messages=(Message(role="user", content="hi <s>"),))
    tokens = tokenizer.prompt(chat).tokens.tolist()
    assert tokens[0] == 1
    assert tokens.count(1) == 1
    assert b"".join(map(one.piece, tokens)) == (b" " if spaced else b"") + b"[INST] hi <s> [/INST]"
    told = Generate(request_id="r", model="m", prompt="abc")
    assert b"".join(map(one.piece, tokenizer.prompt(told).tokens.tolist())) == (b" abc" if spaced else b"abc")


@pytest.mark.parametrize("where", ["file", "list", "none"])
def test_the_chat_template_is_found_where_transformers_puts_it(where: str, folder: Path):
    """In a file of its own, or among others; a model without one cannot chat."""
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": None}
    if where == "list":
        config["chat_template"] = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if where == "file":
        (folder / "chat_template.jinja").write_text(CHATML)
    assert FolderVocabulary(folder).chat_template() == (None if where == "none" else CHATML)


def test_the_parser_of_calls_can_be_said(folder: Path):
    """Where the template does not tell: mistral is the one of both generations."""
    one = FolderVocabulary(folder)
    assert Tokenizer(one).syntax == Tokenizer(one, "hermes").syntax
    assert Tokenizer(one, "mistral").syntax.family == "mistral"
    (folder / "chat_template.jinja").write_text(CHATML + "{# [TOOL_CALLS]name[ARGS]{} #}")
    assert Tokenizer(FolderVocabulary(folder), "mistral").syntax.family == "devstral"
    assert Tokenizer(FolderVocabulary(folder), "hermes").syntax.opening == "<tool_call>"


def test_a_tokenizer_of_words_is_refused(folder: Path):
    """Its tokens have no bytes that we could know."""
    written = json.loads((folder / "tokenizer.json").read_text())
    written |= {"pre_tokenizer": {"type": "Whitespace"}, "decoder": None}
    (folder / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(Misconfigured, match="neither byte-level nor"):
        FolderVocabulary(folder)


def test_letters_of_bytes_are_gpt2s():
    """A space is Ġ, a line end Ċ."""
    letters = byte_letters()
    assert (letters[32], letters[10], letters[65], len(set(letters))) == ("Ġ", "Ċ", "A", 256)
