"""One answer in the making: the tokens that vLLM sends, as the deltas of the contract. Pure, and without vLLM.

The rules are those of llama.cpp's step loop: a token that ends the answer is not counted, bytes go through the same
parser of thoughts, calls and stop strings, and nothing behind the end is looked at.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from app.llama.answer import Answer, Piece
from app.messages import Alternative, Delta, End, FinishReason, TokenLogprob


class Pieces(Protocol):
    """What tokens stand for: app.vllm.vocabulary.FolderVocabulary."""

    @property
    def endings(self) -> frozenset[int]: ...
    def piece(self, token: int) -> bytes: ...
    def name(self, token: int) -> str: ...


class Likelihood(Protocol):
    """vllm.logprobs.Logprob."""

    @property
    def logprob(self) -> float: ...


class Reply:
    """Takes tokens until `end` says how the answer ended. top: alternatives to tell with each; None tells nothing."""

    def __init__(self, choice: int, text: Answer, pieces: Pieces, top: int | None) -> None:
        self._choice, self._text, self._pieces, self._top = choice, text, pieces, top
        self.generated = 0
        self.thought = 0  # tokens of them that were thoughts
        self.end: End | None = None

    def take(
        self,
        tokens: Sequence[int],
        likelihoods: Sequence[Mapping[int, Likelihood]] | None,
        finish_reason: str | None,
    ) -> list[Delta]:
        """What the next tokens say. finish_reason: vLLM's, with the last of them."""
        deltas: list[Delta] = []
        for at, token in enumerate(tokens):
            if token in self._pieces.endings:
                return deltas + self._finish("stop")
            told = () if self._top is None or likelihoods is None else (self._told(token, likelihoods[at], self._top),)
            deltas.append(self._delta(self._push(token), 1, told))
            if self._text.stopped is not None or self._text.complete:
                return deltas + self._finish("stop")
        if finish_reason is not None:
            deltas += self._finish("length" if finish_reason == "length" else "stop")
        return deltas

    def _push(self, token: int) -> Piece:
        self.generated += 1
        thinking = self._text.thinking
        piece = self._text.push(self._pieces.piece(token))
        self.thought += thinking and self._text.thinking
        return piece

    def _finish(self, reason: FinishReason) -> list[Delta]:
        deltas = []
        while piece := self._text.finish():
            deltas.append(self._delta(piece, 0))
        if reason == "stop" and (self._text.calls or self._text.broken):
            reason = "length" if self._text.broken else "tool_calls"
        self.end = End(reason, self._text.stopped)
        return deltas

    def _delta(self, piece: Piece, tokens: int, logprobs: tuple[TokenLogprob, ...] = ()) -> Delta:
        return Delta(piece.text, tokens, self._choice, piece.reasoning, piece.calls, logprobs)

    def _told(self, token: int, found: Mapping[int, Likelihood], top: int) -> TokenLogprob:
        """Of what vLLM tells: the chosen token and the likeliest ones, of which it may be one."""
        best = sorted(found.items(), key=lambda one: -one[1].logprob)[:top]
        return TokenLogprob(
            self._alternative(token, found[token].logprob),
            tuple(self._alternative(other, likely.logprob) for other, likely in best),
        )

    def _alternative(self, token: int, logprob: float) -> Alternative:
        data = self._pieces.piece(token) or self._pieces.name(token).encode()
        return Alternative(data.decode(errors="replace"), data, logprob)
