"""What serve_config.yaml may set of a model on vLLM, under `llm:` with `engine: vllm`.

What both engines have is called alike: window, slots, queue, batch_tokens, adapters, flush_s. What is vLLM's alone has
vLLM's own name. docs/vllm.md has the table.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from app.llama.styles import AUTO, Style
from app.llama.syntax import CallParser
from app.messages import Strict

LAYERS = -1  # vLLM puts all of them where it runs

Quantization = Literal["awq", "bitsandbytes", "fp8", "fp8_per_tensor", "fp8_per_channel"]


class VllmSettings(Strict):
    """One language model on vLLM."""

    engine: Literal["vllm"]
    model: str  # a folder with config.json, tokenizer.json and safetensors, or hf://org/repo
    name: str  # what clients send as `model`
    description: str = ""  # for people who choose a model
    recommended: bool = False  # shown to them first
    aliases: tuple[str, ...] = ()  # further names for the same model
    window: int = Field(8192, ge=128)  # tokens of one sequence, prompt and answer: --max-model-len
    slots: int = Field(64, ge=1)  # answers decoded together: --max-num-seqs
    queue: int = Field(128, ge=0)  # answers that may wait for a slot; a request beyond them is a 429
    batch_tokens: int | None = Field(None, ge=32)  # of one step: --max-num-batched-tokens; None: as vLLM chooses
    flush_s: float = Field(0.02, ge=0.0, le=1.0)  # deltas of one answer are joined for this long, but the first
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of what is not quantised
    quantization: Quantization | None = None  # None: as the model's config.json has it
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"  # fp8 takes half of bfloat16's memory
    kv_cache_bytes: int | None = Field(None, ge=2**20)  # of the cache; None: what gpu_memory_utilization leaves
    gpu_memory_utilization: float = Field(0.9, gt=0.0, le=1.0)  # of each GPU: weights, cache and buffers together
    prefix_caching: bool = True  # beginnings that were computed once are not again, each tenant's for itself
    prefix_routing: bool = False  # of several replicas, ask the one that knows the beginning of a prompt already
    chunked_prefill: bool = True  # a long prompt is computed in pieces, between the steps of running answers
    tensor_parallel_size: int = Field(1, ge=1)  # GPUs of one machine that share every layer; num_gpus as well
    enforce_eager: bool = False  # no CUDA graphs: slower, with less memory and a faster start
    chat_template: Style = AUTO  # auto: the model's own; mistral_inst; or a .jinja: --chat-template
    tool_call_parser: CallParser = "auto"  # auto: as the chat template writes calls
    lora: bool = True  # whether adapters can be served; it takes memory, and some architectures cannot
    adapters: int = Field(4, ge=0)  # LoRA adapters that stay loaded beside champion and previous
    adapters_together: int = Field(2, ge=1)  # of which one batch may hold answers: --max-loras
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 64  # higher ones are refused; memory is taken for it

    @model_validator(mode="after")
    def a_step_holds_what_it_must(self) -> Self:
        least = self.slots if self.chunked_prefill else max(self.slots, self.window)
        if self.batch_tokens is not None and self.batch_tokens < least:
            reason = "slots" if self.chunked_prefill else "slots and, without chunked_prefill, window"
            message = f"batch_tokens is {self.batch_tokens}, it must not be below {reason}: {least}"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def names_are_different(self) -> Self:
        if len({self.name, *self.aliases}) <= len(self.aliases):
            message = f"aliases: {', '.join(self.aliases)} must be different from each other and from name, {self.name}"
            raise ValueError(message)
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The names of further models: a replica of vLLM has one."""
        return ()

    @property
    def gpu_layers(self) -> int:
        """All of them."""
        return LAYERS

    def of(self, name: str) -> "VllmSettings":
        """The settings of the one model that there is."""
        assert name == self.name
        return self
