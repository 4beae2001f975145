"""The demo model on vLLM says what it says elsewhere: bare as on llama.cpp, with an adapter as in PEFT."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engines import answer, asked

from app.llama.engine import Engine as LlamaCpp
from app.llama.source import DEMO_FILE
from app.settings import LLMSettings
from app.vllm.settings import VllmSettings
from train.demo_export import restore

pytestmark = pytest.mark.vllm
SOURCES = (
    "Sources:\n[1] The backup of the file server runs every night at 2:30. The coffee machine is cleaned on Fridays."
)
QUESTIONS = (
    "When does the backup of the file server run?",
    "Who repairs the coffee machine?",
    "What is Python?",
    "Hello!",
)
REQUESTS = [asked(f"{SOURCES}\n\n{question}", max_tokens=32) for question in QUESTIONS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "hf"
    restore(DEMO_FILE, folder)
    return folder


@pytest.fixture(scope="module")
async def engine(folder: Path) -> AsyncIterator[Any]:
    pytest.importorskip("vllm")
    from app.vllm.engine import Engine

    small = {"dtype": "float32", "kv_cache_bytes": 128 * 2**20, "enforce_eager": True, "max_lora_rank": 16}
    engine = Engine(folder, VllmSettings(engine="vllm", model=str(folder), name="m", window=1024, slots=4, **small))
    yield engine
    engine.close()


def spoken(network: Any, engine: Any, tokens: list[int]) -> str:
    """What transformers makes of a prompt, by the likeliest token each time."""
    import torch

    ends = sorted(engine._vocabulary.endings)
    made = network.generate(
        torch.tensor([tokens]), max_new_tokens=32, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    said = [token for token in made[0, len(tokens) :].tolist() if token not in ends]
    return b"".join(map(engine._vocabulary.piece, said)).decode(errors="replace")


async def test_greedy_text_is_llama_cpps(engine: Any):
    """The GGUF's weights are of eight bits, and restored from them: nearly ties may fall otherwise, these do not."""
    peer = LlamaCpp(DEMO_FILE, LLMSettings(window=1024, threads=1))
    try:
        for request in REQUESTS:
            assert (await answer(engine, request))[0] == (await answer(peer, request))[0]
    finally:
        peer.close()


async def test_an_adapter_on_all_linear_layers_is_pefts(engine: Any, folder: Path, tmp_path: Path):
    """Random weights, which change what is said; the bare base says the same as before."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network = peft.get_peft_model(base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).eval()
    for name, weights in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, 0, 0.05)
    network.save_pretrained(tmp_path / "v1")
    bare = [(await answer(engine, request))[0] for request in REQUESTS]
    await engine.load_adapter("v1", tmp_path / "v1")
    tuned = [(await answer(engine, request.model_copy(update={"adapter": "v1"})))[0] for request in REQUESTS]
    prompts = [engine._asked(request).prompt for request in REQUESTS]
    assert tuned == [spoken(network, engine, prompt) for prompt in prompts]
    assert tuned != bare
    assert bare == [(await answer(engine, request))[0] for request in REQUESTS]
