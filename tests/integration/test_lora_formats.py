"""Every format that an adapter is served in, held against PyTorch with PEFT: the same log-probabilities come out."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
import transformers
from gguf_factory import random_model, recurrent_model

from app.errors import InvalidRequest
from app.llama.scoring import Scorer
from app.llama.styles import TAUGHT_BY
from app.settings import LLMSettings
from tests import transformers_gguf
from tests.transformers_gguf import KINDS, LAYERS
from train import gguf_lora, gguf_merge, gguf_names, lora, safetensors_merge

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # inside PEFT
]

F32, F16, Q8_0 = (getattr(gguf.GGMLQuantizationType, name) for name in ("F32", "F16", "Q8_0"))
TOKENS = np.random.default_rng(5).integers(0, 260, 90).tolist()
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Made:
    """A model, its folder and GGUF, and an adapter of random weights on every linear layer."""

    def __init__(self, folder: Path, kind: str, **config: Any) -> None:
        self.kind, self.base, self.adapter = kind, folder / "base", folder / "adapter"
        network = transformers_gguf.network(kind)
        network.save_pretrained(self.base)
        self.gguf = transformers_gguf.write(folder / "base.gguf", kind, network, dtype=F32)
        settings = {"r": 4, "lora_alpha": 12, "target_modules": list(EVERY), "task_type": "CAUSAL_LM"} | config
        self.tuned = peft.get_peft_model(network, peft.LoraConfig(**settings))
        for name, weight in self.tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        self.tuned.eval().save_pretrained(self.adapter, save_embedding_layers=False)

    def torch(self, *, tuned: bool) -> np.ndarray:
        """The log-probability of each token, as PyTorch has it."""
        if tuned:
            return log_probabilities(self.tuned)
        with self.tuned.disable_adapter():
            return log_probabilities(self.tuned)


def log_probabilities(model: Any) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].double().log_softmax(-1)
    return logits[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])].numpy()


def served(path: Path, adapter: Path | None = None) -> np.ndarray:
    with Scorer(path, LLMSettings(window=256, cache_type_k="f16"), threads=1) as scorer:
        return scorer.score(TOKENS, adapter)


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("llama"), "llama")


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def test_a_served_adapter_says_what_pytorch_says(made: Made, tmp_path: Path):
    """On every architecture that is named, all seven projections tuned: the adapter changes much, the format little."""
    gguf_lora.write(tmp_path / "adapter.gguf", lora.read(made.adapter), made.gguf)
    base, tuned = served(made.gguf), served(made.gguf, tmp_path / "adapter.gguf")
    assert far(base, made.torch(tuned=False)) < 0.02  # the cache is float16
    assert far(tuned, made.torch(tuned=True)) < 0.02
    assert far(base, tuned) > 1.0


def test_a_merged_gguf_says_the_same(made: Made, tmp_path: Path):
    """Beside the adapter's layers nothing of the file is changed: metadata, vocabulary, tensors."""
    gguf_merge.merge(tmp_path / "merged.gguf", lora.read(made.adapter), made.gguf)
    assert far(served(tmp_path / "merged.gguf"), made.torch(tuned=True)) < 0.02
    before, after = gguf.GGUFReader(made.gguf), gguf.GGUFReader(tmp_path / "merged.gguf")
    told = [
        {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        for reader in (before, after)
    ]
    assert told[0] == told[1]
    assert [tensor.name for tensor in before.tensors] == [tensor.name for tensor in after.tensors]
    same = [np.array_equal(a.data, b.data) for a, b in zip(before.tensors, after.tensors, strict=True)]
    assert same.count(False) == len(EVERY) * LAYERS


def test_a_merged_folder_says_the_same(made: Made, tmp_path: Path):
    """As transformers reads it, and as PEFT would have merged it."""
    safetensors_merge.merge(tmp_path / "merged", lora.read(made.adapter), made.base)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert far(log_probabilities(merged), made.torch(tuned=True)) < 1e-4


def test_a_merged_model_takes_the_template_that_it_was_taught_by(llama: Made, tmp_path: Path):
    """In a file and in a folder."""
    template = "{{ messages[0].content }}"
    gguf_merge.merge(tmp_path / "merged.gguf", lora.read(llama.adapter), llama.gguf, template)
    field = gguf.GGUFReader(tmp_path / "merged.gguf").get_field("tokenizer.chat_template")
    assert field is not None
    assert field.contents() == template
    safetensors_merge.merge(tmp_path / "merged", lora.read(llama.adapter), llama.base, template)
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize("kind", gguf_merge.QUANTISATIONS)
def test_quantised_files_stay_near(llama: Made, tmp_path: Path, kind: gguf_merge.Quantisation):
    """By llama.cpp's own quantiser: the mean change of a log-probability. Random weights are a hard case."""
    gguf_merge.merge(tmp_path / "merged.gguf", lora.read(llama.adapter), llama.gguf)
    gguf_merge.quantise(tmp_path / "merged.gguf", tmp_path / "small.gguf", kind, threads=1)
    assert (tmp_path / "small.gguf").stat().st_size < (tmp_path / "merged.gguf").stat().st_size
    mean = float(np.abs(served(tmp_path / "small.gguf") - llama.torch(tuned=True)).mean())
    assert mean < {"Q8_0": 0.05, "Q5_K_M": 0.3, "Q4_K_M": 0.6}[kind]


@pytest.mark.parametrize("dtype", [F16, Q8_0])
def test_the_bases_own_precision_is_kept(llama: Made, tmp_path: Path, dtype: gguf.GGMLQuantizationType):
    """An F16 file stays one, a Q8_0 file too."""
    base = transformers_gguf.write(tmp_path / "base.gguf", "llama", transformers_gguf.network("llama"), dtype=dtype)
    gguf_merge.merge(tmp_path / "merged.gguf", lora.read(llama.adapter), base)
    assert {t.tensor_type for t in gguf.GGUFReader(tmp_path / "merged.gguf").tensors} == {F32, dtype}
    assert float(np.abs(served(tmp_path / "merged.gguf") - llama.torch(tuned=True)).mean()) < 0.05


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 20}},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": [*EVERY, "lm_head"]},
    ],
    ids=["rank-stabilised", "patterns", "one layer", "output layer"],
)
def test_every_way_to_scale_a_lora_is_kept(tmp_path: Path, config: dict[str, Any]):
    """PEFT's ranks and alphas by layer, the root of the rank, and the output layer."""
    made = Made(tmp_path, "llama", **config)
    gguf_lora.write(tmp_path / "adapter.gguf", lora.read(made.adapter), made.gguf)
    assert far(served(made.gguf, tmp_path / "adapter.gguf"), made.torch(tuned=True)) < 0.02
    assert far(made.torch(tuned=True), made.torch(tuned=False)) > 0.1


def test_a_file_says_which_chat_template_taught_it(llama: Made, tmp_path: Path):
    """And nothing where nothing is known."""
    for name, taught_by in (("told", "mistral_inst"), ("silent", None)):
        gguf_lora.write(tmp_path / name, lora.read(llama.adapter), llama.gguf, taught_by=taught_by)
    told, silent = [gguf.GGUFReader(tmp_path / name).get_field(TAUGHT_BY) for name in ("told", "silent")]
    assert silent is None
    assert told is not None
    assert told.contents() == "mistral_inst"


def test_half_precision_halves_the_file(llama: Made, tmp_path: Path):
    """And changes next to nothing."""
    deltas = lora.read(llama.adapter)
    gguf_lora.write(tmp_path / "whole.gguf", deltas, llama.gguf)
    gguf_lora.write(tmp_path / "half.gguf", deltas, llama.gguf, half=True)
    assert (tmp_path / "half.gguf").stat().st_size < 0.7 * (tmp_path / "whole.gguf").stat().st_size
    assert far(served(llama.gguf, tmp_path / "half.gguf"), llama.torch(tuned=True)) < 0.03


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"trainable_token_indices": [3]}, "trained tokens"),
    ],
)
def test_what_cannot_be_served_is_refused(llama: Made, tmp_path: Path, change: dict[str, Any], reason: str):
    """Before anything is written, and by what is wrong."""
    shutil.copytree(llama.adapter, tmp_path / "adapter")
    config = tmp_path / "adapter" / lora.CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InvalidRequest, match=reason):
        lora.read(tmp_path / "adapter")


def test_an_adapter_of_another_base_is_refused(llama: Made, tmp_path: Path):
    """Another width, another architecture, no output layer, too coarse a file: with what does not fit."""
    deltas, out = lora.read(llama.adapter), tmp_path / "out.gguf"
    other = random_model(tmp_path / "other.gguf")
    tied = transformers_gguf.network("llama", tied=True)
    tied_file = transformers_gguf.write(tmp_path / "tied.gguf", "llama", tied, dtype=F32)
    with pytest.raises(InvalidRequest, match=r"is 96 × 64; blk\.0\.ffn_gate\.weight of other\.gguf is 128 × 64"):
        gguf_lora.write(out, {n: d for n, d in deltas.items() if n.endswith("gate_proj")}, other)
    with pytest.raises(InvalidRequest, match="architecture 'mamba'"):
        gguf_lora.write(out, deltas, recurrent_model(tmp_path / "mamba.gguf"))
    with pytest.raises(InvalidRequest, match="no output layer of its own"):
        gguf_lora.write(out, {"lm_head": next(iter(deltas.values()))}, tied_file)
    with pytest.raises(InvalidRequest, match=r"has no layer 'model\.layers\.0\.linear_attn"):
        gguf_lora.write(out, {"model.layers.0.linear_attn.whatever": next(iter(deltas.values()))}, llama.gguf)
    coarse = tmp_path / "coarse.gguf"
    gguf_merge.quantise(llama.gguf, coarse, "Q4_K_M", threads=1)
    with pytest.raises(InvalidRequest, match="too coarse to add an adapter to"):
        gguf_merge.merge(out, deltas, coarse)
    one = {"model.layers.7.self_attn.q_proj": deltas["model.layers.0.self_attn.q_proj"]}
    with pytest.raises(InvalidRequest, match=r"has no model\.layers\.7"):
        safetensors_merge.merge(tmp_path / "folder", one, llama.base)
    assert not out.exists()


def test_every_named_architecture_is_held_against_transformers():
    """So that the list in train/gguf_names.py promises nothing that was not run."""
    assert {kind.gguf for kind in KINDS.values()} == set(gguf_names.PAIRED)
    assert all(gguf_names.PAIRED[kind.gguf] == kind.paired for kind in KINDS.values())
