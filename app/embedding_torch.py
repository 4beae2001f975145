"""The embedding model through sentence-transformers and PyTorch: the reference for all others, and what a GPU runs.

Importing them costs seconds and hundreds of megabytes, so it happens when a model is loaded. Numbers are of 16 bits
where the hardware computes with them: float16 on CUDA, bfloat16 on CPUs with AVX512-BF16 or AMX. On other CPUs they are
emulated, and slower than float32.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from app.embedding_card import PROBES, SETTING, Card, Ints, unfit
from app.errors import Misconfigured
from app.vectors import Floats

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
GPU_PASS_TOKENS = 65_536


class TorchNetwork:
    """A loaded model. reference: what sentence-transformers makes of the probes, float32 (purposes, probes, dimension).

    name: what people call it. folder: where it lies, or its name on the Hub. Raises Misconfigured: it is not to be
    found, or needs more than a text's tokens.
    """

    def __init__(self, name: str, folder: Path | str, *, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        try:
            self._library = SentenceTransformer(str(folder))
        except (OSError, ValueError) as exc:
            problem = f"'{name}' could not be loaded: {exc}"
            remedy = "Name a folder or a cached model, or allow the download."
            raise Misconfigured(SETTING, problem, remedy) from exc
        library = self._library
        if library.max_seq_length is None or not hasattr(library.tokenizer, "backend_tokenizer"):
            raise unfit(name, "it has no fast tokenizer or no maximum length")
        self.reference: Floats = np.stack(
            [
                encode(list(PROBES), normalize_embeddings=True, show_progress_bar=False)
                for encode in (library.encode_query, library.encode_document, library.encode)
            ]
        )
        self.tokenizer: Tokenizer = library.tokenizer.backend_tokenizer
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.card = self._described(name)
        self.device = library.device.type
        self.describes = f"PyTorch, {self.device}, float32"
        self.pass_tokens = None if self.device == "cpu" else GPU_PASS_TOKENS
        self.module = _unit_vectors(library, typed="token_type_ids" in library.tokenizer.model_input_names)

    def halve(self) -> bool:
        """Go on with numbers of 16 bits, where the hardware has them. False: it has not, and nothing changed."""
        import torch

        if self.device != "cuda" and not (self.device == "cpu" and has_bf16()):
            return False
        kind = torch.float16 if self.device == "cuda" else torch.bfloat16
        self._library.to(dtype=kind)
        self.describes = f"PyTorch, {self.device}, {str(kind).removeprefix('torch.')}"
        return True

    def forward(self, ids: Ints, mask: Ints) -> Floats:
        """Unit vectors, float32 (texts, dimension). ids, mask: int64 (texts, tokens)."""
        import torch

        with torch.inference_mode():
            inputs = (torch.from_numpy(array).to(self._library.device) for array in (ids, mask))
            found: Floats = self.module(*inputs).cpu().numpy()
        return found

    def _described(self, name: str) -> Card:
        library, tokenizer = self._library, self._library.tokenizer
        probe = self.tokenizer.encode("a")
        special = probe.special_tokens_mask
        first, last = special.index(0), len(special) - special[::-1].index(0)
        prompts = library.prompts
        return Card(
            model=name,
            dimension=library.get_embedding_dimension(),
            max_tokens=int(library.max_seq_length),
            query=prompts.get("query") or "",
            document=prompts.get("document") or "",
            plain=prompts.get(library.default_prompt_name or "") or "",
            before=tuple(probe.ids[:first]),
            after=tuple(probe.ids[last:]),
            pad=tokenizer.pad_token_id or 0,
            pads_left=tokenizer.padding_side == "left",
        )


def _unit_vectors(library: "torch.nn.Module", *, typed: bool) -> "torch.nn.Module":
    """The model as a module of token ids and mask alone. typed: it takes the types of tokens, of which we have one."""
    import torch

    class UnitVectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.library = library
            self.typed = typed

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": ids, "attention_mask": mask}  # both (texts, tokens)
            if self.typed:
                features["token_type_ids"] = torch.zeros_like(ids)
            return torch.nn.functional.normalize(self.library(features)["sentence_embedding"].float(), dim=1)

    return UnitVectors().eval()


def has_bf16() -> bool:
    """Whether this CPU computes with bfloat16."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return not BF16_FLAGS.isdisjoint(flags.split())
