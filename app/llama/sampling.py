"""The sampler of one answer, in llama.cpp: biases, penalties, top-k, top-p, min-p, temperature, a draw; and a grammar.

A grammar would have to judge the whole vocabulary before every draw. Instead the draw comes first and is judged alone;
only where the grammar refuses it is the vocabulary judged, and drawn from again, as llama.cpp's own tools do. And of
the vocabulary only what begins with a character that may come (openings.py).
"""

import ctypes

import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one
import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidRequest
from app.llama.constraint import Constraint
from app.llama.context import Context
from app.llama.model import Model
from app.llama.vocabulary import Tokens
from app.messages import Alternative, Sampling, TokenLogprob

RANDOM_SEED = C.LLAMA_DEFAULT_SEED  # llama.cpp draws one itself
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Sampler:
    """Draws the tokens of one answer. Penalties count the answer's own tokens, not those of the prompt.

    That is OpenAI's reading, and it leaves a model free to quote its sources. answer_tokens: how many can come.
    Raises InvalidRequest for a bias of no token, or a grammar that llama.cpp refuses.
    """

    def __init__(
        self, sampling: Sampling, model: Model, answer_tokens: int, constraint: Constraint | None = None
    ) -> None:
        self._chain: int | None = None
        self._grammar: int | None = None
        self._calls = constraint.calls if constraint else None
        self._model = model  # its vocabulary must outlive the chain
        self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        try:
            self._build(sampling, model, answer_tokens)
            self._grammar = _grammar(model, constraint.grammar) if constraint and constraint.grammar else None
            if self._calls and (text := self._calls.behind("")):
                C.llama_sampler_free(_grammar(model, text))  # so that it is known to be one
        except InvalidRequest:
            self.close()
            raise

    def _build(self, sampling: Sampling, model: Model, answer_tokens: int) -> None:
        bias = _biases(sampling, model)
        if bias:
            pairs = (C.llama_logit_bias * len(bias))(*bias.items())
            self._add(C.llama_sampler_init_logit_bias(model.vocab_size, len(bias), pairs))
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

    def sample(self, context: Context, row: int) -> int | None:
        """Draw the token that follows a row of the last batch, and count it for penalties and grammar.

        None where the vocabulary has no token that the grammar wants.
        """
        if self._grammar is None:
            return int(C.llama_sampler_sample(self._chain, context.handle, context.place(row)))
        logits = context.logits(row)
        token, _ = _draw(_candidates(np.arange(len(logits), dtype=np.int32), logits), self._chain)
        if not self._allowed(np.array([token], np.int32))[0]:
            tokens = self._model.openings.behind(self._allowed(self._model.openings.singles))
            token, possible = _draw(_candidates(tokens, logits[tokens]), self._grammar, self._chain)
            if not possible:
                return None
        C.llama_sampler_accept(self._chain, token)
        C.llama_sampler_accept(self._grammar, token)
        return token

    def follow(self, calling: str | None) -> None:
        """Hold the calls that a model begins itself to their schemas, and free it behind them.

        calling: what it wrote of a call that has begun; None outside of one.
        """
        if self._calls is None:
            return
        if calling is None and self._grammar is not None:
            C.llama_sampler_free(self._grammar)
            self._grammar = None
        elif calling is not None and self._grammar is None and (text := self._calls.behind(calling)):
            self._grammar = _grammar(self._model, text)

    def _allowed(self, tokens: Tokens) -> NDArray[np.bool_]:
        """Whether the grammar takes each of them next."""
        candidates = _candidates(tokens, 0.0)
        C.llama_sampler_apply(self._grammar, ctypes.byref(_array(candidates)))
        allowed: NDArray[np.bool_] = np.isfinite(candidates["logit"])
        return allowed

    def close(self) -> None:
        """Free the chain."""
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                C.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def __del__(self) -> None:
        """One whose request never came to run."""
        self.close()


def logprob(model: Model, logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """How likely a token was by the model itself, before penalties and temperature. logits: (vocabulary,)."""
    shifted = logits.astype(np.float64) - logits.max()
    found = shifted - np.log(np.exp(shifted).sum())
    best = np.argpartition(-found, top - 1)[:top] if top else np.zeros(0, np.intp)
    best = best[np.argsort(-found[best], kind="stable")]
    return TokenLogprob(_alternative(model, token, found), tuple(_alternative(model, int(one), found) for one in best))


def _alternative(model: Model, token: int, logprobs: NDArray[np.float64]) -> Alternative:
    data = model.piece(token) or model.name(token).encode()
    return Alternative(data.decode(errors="replace"), data, float(logprobs[token]))


def _biases(sampling: Sampling, model: Model) -> dict[int, float]:
    for token in sampling.logit_bias:
        if not 0 <= token < model.vocab_size:
            message = f"'logit_bias' names token {token}; the model's tokens are 0 to {model.vocab_size - 1}."
            raise InvalidRequest(message, "logit_bias")
    never = dict.fromkeys(model.endings, -np.inf) if sampling.ignore_eos else {}
    return {**sampling.logit_bias, **never}


def _grammar(model: Model, text: str) -> int:
    made: int | None = C.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    if not made:
        raise InvalidRequest("The schema makes a grammar that llama.cpp refuses. Simplify it.", "response_format")
    return made


def _candidates(tokens: Tokens, logits: NDArray[np.float32] | float) -> NDArray[np.void]:
    candidates = np.empty(len(tokens), CANDIDATE)
    candidates["id"], candidates["logit"], candidates["p"] = tokens, logits, 0.0
    return candidates


def _draw(candidates: NDArray[np.void], *samplers: int | None) -> tuple[int, bool]:
    """A token, and whether it is possible at all."""
    if not len(candidates):
        return -1, False
    array = _array(candidates)
    for sampler in samplers:
        C.llama_sampler_apply(sampler, ctypes.byref(array))
    chosen = array.data[array.selected]  # samplers reorder and shorten what it points to
    return int(chosen.id), bool(np.isfinite(chosen.logit))


def _array(candidates: NDArray[np.void]) -> C.llama_token_data_array:
    data = candidates.ctypes.data_as(ctypes.POINTER(C.llama_token_data))
    return C.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
