"""What a model will take, told from the head of its GGUF before it is loaded, and what this machine has free.

Weights and cache are exact for models whose every layer attends to all tokens, and too high for others; the working
buffers are an estimate. Linux tells what is free, a container's limit included; elsewhere nothing is refused.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from app.errors import Misconfigured
from app.llama.devices import chosen
from app.settings import CacheType, LLMSettings

MAGIC = b"GGUF"
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9  # the other kinds of value
LONGEST_LIST = 4096  # of numbers that are kept: per-layer sizes, not vocabularies
BLOCK, BLOCK_BYTES = 32, {"f16": 64, "q8_0": 34, "q4_0": 18}  # of that many numbers in the cache


class Need(NamedTuple):
    """Bytes that a model will take."""

    weights: int
    cache: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    def __str__(self) -> str:
        return f"{_gb(self.total)} ({_gb(self.weights)} weights, {_gb(self.cache)} cache, {_gb(self.buffers)} buffers)"


class Room(NamedTuple):
    """Bytes that are free. None: nobody tells."""

    ram: int | None
    vram: int | None


def head(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF, without its vocabulary. Raises Misconfigured where the file is none."""
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise Misconfigured("llm.model", f"{path} is no GGUF", "Use another file")
            _, _, pairs = _numbers(file, "<IQQ")
            return dict(_pair(file) for _ in range(pairs))
    except (struct.error, KeyError, OverflowError, UnicodeDecodeError) as exc:
        raise Misconfigured("llm.model", f"{path} is a broken GGUF", "Use another file, or download it again") from exc


def need(path: Path, settings: LLMSettings) -> Need:
    """What the model of a GGUF takes. Raises Misconfigured for a cache type that does not fit it."""
    return needed(head(path), path.stat().st_size, settings)


def needed(metadata: Mapping[str, Any], weights: int, settings: LLMSettings) -> Need:
    """The same of a GGUF that need not be here. metadata: as `head` reads it. weights: the bytes of its file."""
    sizes = Sizes(metadata)
    cells = settings.cache_tokens or settings.slots * settings.window
    types = ((settings.cache_type_k, sizes.key_length), (settings.cache_type_v, sizes.value_length))
    cache_bytes = sum(cells * heads * _row_bytes(kind, length) for heads in sizes.kv_heads for kind, length in types)
    rows = settings.batch_tokens
    scores = 0 if settings.flash_attention != "off" else sizes.heads * cells
    buffers = rows * 4 * (6 * sizes.embedding + 3 * sizes.feed_forward + cells + scores)
    outputs = 4 * sizes.vocabulary * settings.slots * 2
    return Need(weights, cache_bytes, buffers + outputs)


class Sizes:
    """The shape of a model, from its metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata, self._kind = metadata, str(metadata.get("general.architecture", ""))
        self.layers = self._number("block_count")
        self.embedding = self._number("embedding_length")
        self.feed_forward = self._most("feed_forward_length")
        self.heads = self._most("attention.head_count")
        of_each = self._get("attention.head_count_kv", self.heads)
        self.kv_heads = of_each if isinstance(of_each, list) else [of_each] * self.layers
        length = self.embedding // self.heads if self.heads else 0
        self.key_length = self._number("attention.key_length", length)
        self.value_length = self._number("attention.value_length", length)
        self.vocabulary = self._number("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))

    def _get(self, key: str, default: Any = 0) -> Any:
        return self._metadata.get(f"{self._kind}.{key}", default)

    def _number(self, key: str, default: int = 0) -> int:
        return int(self._get(key, default))

    def _most(self, key: str) -> int:
        found = self._get(key)
        return max(found, default=0) if isinstance(found, list) else int(found)


def check(path: Path, settings: LLMSettings, room: Room | None = None) -> None:
    """Raise Misconfigured, with both numbers, where the model would not fit into what is free."""
    wanted, sizes = need(path, settings), Sizes(head(path))
    room = room or free(settings)
    layers = sizes.layers + 1  # llama.cpp counts the output as one
    offloaded = layers if settings.gpu_layers < 0 else min(settings.gpu_layers, layers)
    on_gpu = wanted.total * offloaded // layers
    remedy = (
        "Use a smaller quantisation, lower llm.window, llm.slots or llm.cache_tokens, set llm.cache_type_k and "
        "llm.cache_type_v to q8_0"
    )
    if room.vram is not None and on_gpu > room.vram:
        problem = f"{path.name} needs {wanted}, of it {_gb(on_gpu)} on the GPU, which has {_gb(room.vram)} free"
        raise Misconfigured("llm.gpu_layers", problem, f"{remedy}, or lower llm.gpu_layers.")
    if room.ram is not None and wanted.total - on_gpu > room.ram:
        problem = f"{path.name} needs {wanted}, {_gb(wanted.total - on_gpu)} of it in memory; {_gb(room.ram)} are free"
        raise Misconfigured("llm.model", problem, f"{remedy}, or free memory.")


def free(settings: LLMSettings) -> Room:
    """What the machine or its container has left, and the GPUs of a model together. Raises Misconfigured."""
    on = chosen(settings)
    return Room(_free_ram(), sum(gpu.free for gpu in on) if on else None)


def _free_ram() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min(left, _free_in_container(left))


def _free_in_container(otherwise: int) -> int:
    """By the limit of the control group, version 2. File pages that it can drop count as free."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return otherwise
    return otherwise if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def _row_bytes(kind: CacheType, length: int) -> int:
    if kind != "f16" and length % BLOCK:
        problem = f"is {kind}, which stores {BLOCK} numbers together; the heads of this model have {length}"
        raise Misconfigured("llm.cache_type_k and cache_type_v", problem, "Set them to f16.")
    return length * BLOCK_BYTES[kind] // BLOCK


def _pair(file: BinaryIO) -> tuple[str, Any]:
    key = _string(file)
    (kind,) = _numbers(file, "<I")
    return key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind == ARRAY:
        return _list(file)
    return _numbers(file, NUMBERS[kind])[0]


def _list(file: BinaryIO) -> Any:
    kind, length = _numbers(file, "<IQ")
    if kind == STRING:
        for _ in range(length):
            file.seek(_numbers(file, "<Q")[0], 1)
        return range(length)  # a vocabulary: how long it is will do
    if kind == ARRAY:
        return [_list(file) for _ in range(length)]
    if length > LONGEST_LIST:
        file.seek(length * struct.calcsize(NUMBERS[kind]), 1)
        return range(length)
    return [_numbers(file, NUMBERS[kind])[0] for _ in range(length)]


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "<Q")
    if length > 2**24:
        raise struct.error("no string is so long")
    return file.read(length).decode(errors="replace")


def _numbers(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
