"""The demo model's tokenizer: byte-level BPE that llama.cpp knows by the name "gpt-2".

Byte-level BPE with GPT-2's pattern is what llama.cpp runs for `tokenizer.ggml.pre = "gpt-2"`, so that both give the
same tokens. Special tokens are written by the template alone: `encode` never makes one out of text.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

PRE_TOKENIZER = "gpt-2"  # llama.cpp's name for the pattern of pre_tokenizers.ByteLevel(use_regex=True)
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 6144


def train(texts: Iterator[str], *, vocabulary: int = VOCABULARY) -> Tokenizer:
    """Learn the merges from text. The special tokens come first: 0, 1, 2."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=16,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return plain(tokenizer)


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Switch off the recognition of special tokens in text."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Read tokenizer.json."""
    return plain(Tokenizer.from_file(str(path)))


def encode(tokenizer: Tokenizer, text: str) -> Encoding:
    """Tokens and character offsets of plain text, special tokens never among them."""
    return tokenizer.encode(text, add_special_tokens=False)


def number(tokenizer: Tokenizer, token: str) -> int:
    """The number of a token that is known to be there."""
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of tokens, special ones left out."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def merges(tokenizer: Tokenizer) -> list[str]:
    """The merges in order, each "left right"."""
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in learnt]


def rebuild(texts: Sequence[str], pairs: Sequence[str]) -> Tokenizer:
    """The tokenizer of a list of tokens and its merges, as a GGUF file keeps them."""
    left_right = [(pair.split(" ")[0], pair.split(" ")[1]) for pair in pairs]
    tokenizer = Tokenizer(models.BPE(vocab={text: token for token, text in enumerate(texts)}, merges=left_right))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([text for text in SPECIAL if text in texts])
    return plain(tokenizer)
