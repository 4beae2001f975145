"""The base that tuning starts from: what a name comes to be, and that a GGUF says the same as a folder."""

from pathlib import Path

import gguf
import pytest
import torch
import transformers

from app.errors import Misconfigured
from app.llama.source import DEMO_FILE
from tests import transformers_gguf
from train import base

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model.gguf", "there is no file /nowhere/model.gguf"),
        ("/nowhere", "there is no /nowhere"),
        (str(Path(__file__).parent), r"holds no config\.json"),
        (__file__, "is no GGUF file"),
    ],
)
def test_a_base_that_is_missing_is_named_at_once(name: str, message: str) -> None:
    """With what to give instead."""
    with pytest.raises(Misconfigured, match=message):
        base.present(name)


def test_the_demo_model_becomes_a_folder_once(tmp_path: Path) -> None:
    """Known by the content of its file."""
    made = base.find("demo", tmp_path)
    assert {file.name for file in made.folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert made.gguf == DEMO_FILE
    assert base.find("demo", tmp_path) == made
    assert len(list((tmp_path / "models").iterdir())) == 1
    assert base.find(str(made.folder), tmp_path).gguf is None


@pytest.mark.parametrize("dtype", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16], ids=lambda d: d.name)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_gguf_of_others_becomes_a_folder_that_says_the_same(
    kind: str, dtype: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    """Whole weights again, which can be trained, whatever the file packs."""
    network = transformers_gguf.network(kind)
    file = transformers_gguf.write(tmp_path / "other.gguf", kind, network, dtype=dtype)
    made = base.find(str(file), tmp_path)
    restored = transformers.AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        told, meant = (model(tokens).logits.log_softmax(-1) for model in (restored, network))
    assert (told - meant).abs().mean() < 0.05 * meant.std()
    assert all(weight.dtype.is_floating_point for weight in restored.parameters())


def test_a_gguf_that_transformers_misreads_is_refused(tmp_path: Path) -> None:
    """A Qwen3 whose heads are narrower than Qwen3's are, of which transformers takes no notice."""
    file = transformers_gguf.write(
        tmp_path / "narrow.gguf", "qwen3", transformers_gguf.network("qwen3"), dtype=gguf.GGMLQuantizationType.F16
    )
    with pytest.raises(Misconfigured, match="folder of its safetensors"):
        base.find(str(file), tmp_path)
    assert list((tmp_path / "models").iterdir()) == []
