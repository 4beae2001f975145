"""The sampler chain of one request, in llama.cpp: penalties, top-k, top-p, min-p, temperature, then a draw."""

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one

from app.llama.context import Context
from app.llama.model import Model
from app.messages import Sampling

RANDOM_SEED = C.LLAMA_DEFAULT_SEED  # llama.cpp draws one itself


class Sampler:
    """Draws the tokens of one answer. Penalties count the answer's own tokens, not those of the prompt.

    That is OpenAI's reading, and it leaves a model free to quote its sources. answer_tokens: how many can come.
    """

    def __init__(self, sampling: Sampling, model: Model, answer_tokens: int) -> None:
        params = C.llama_sampler_chain_default_params()
        self._chain = C.llama_sampler_chain_init(params)
        if sampling.repeat_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty:
            penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
            self._add(C.llama_sampler_init_penalties(model.vocab_size, answer_tokens, *penalties))
        if sampling.temperature == 0.0:
            self._add(C.llama_sampler_init_greedy())
            return
        if sampling.top_k:
            self._add(C.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1.0:
            self._add(C.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0.0:
            self._add(C.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.temperature != 1.0:
            self._add(C.llama_sampler_init_temp(sampling.temperature))
        self._add(C.llama_sampler_init_dist(RANDOM_SEED if sampling.seed is None else sampling.seed))

    def _add(self, link: int) -> None:
        C.llama_sampler_chain_add(self._chain, link)  # the chain owns it from here

    def sample(self, context: Context, row: int) -> int:
        """Draw the token that follows a row of the last batch, and count it for the penalties."""
        return int(C.llama_sampler_sample(self._chain, context.handle, row))

    def close(self) -> None:
        """Free the chain."""
        C.llama_sampler_free(self._chain)
        self._chain = None
