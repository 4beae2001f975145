"""The tool loop: ask the model, run the server's tools that it calls, tell it the results, until it answers.

    loop = ToolLoop(generate, runner, iterations=5)
    async for item in loop.answer(request): ...      # as the engine's own stream, with a ToolRun for each call that ran

To whoever reads on it is one answer: what the model says between its calls is part of the text, its calls of our tools
are not shown as calls, and the usage is that of all rounds, `max_tokens` too. A call of a tool that the client brought
is the client's: it ends the answer, and calls of ours beside it are left out, so that the client's result comes first.
After the last round the model must answer without tools.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace

from app.answer import gather
from app.errors import ContextTooLong
from app.messages import Delta, Done, End, Generate, Message, Timings, ToolCall, ToolCallDelta, Usage
from app.tools.outcome import refused
from app.tools.runner import Runner, ToolRun

Generating = Callable[[Generate], AsyncGenerator[Delta | Done]]
PAUSE = "\n\n"  # between what is said, or thought, before and after calls


class ToolLoop:
    """One answer. iterations: rounds of calls, at most.

    messages: what was said on the way, as the model saw it: its calls and their results. runs: the calls that ran.
    """

    def __init__(self, generate: Generating, runner: Runner, *, iterations: int = 5) -> None:
        self._generate, self._runner, self._iterations = generate, runner, iterations
        self.messages: list[Message] = []
        self.runs: list[ToolRun] = []

    async def answer(self, request: Generate) -> AsyncGenerator[Delta | ToolRun | Done]:
        """Deltas and runs as they come, then Done. Raises what the engine raises. request: for one answer, n = 1."""
        assert request.n == 1
        offered = {tool.name for tool in request.tools}
        runner, dones = self._runner.among(offered), list[Done]()
        relay = _Relay(offered - runner.names)
        for round_ in range(1, self._iterations + 2):
            asked = self._next(request, round_, dones)
            if asked is None:
                dones[-1] = replace(dones[-1], ends=(End("length"),))
                break
            relay.next_round()
            async with aclosing(self._said(asked)) as items:
                async for item in items:
                    if isinstance(item, Done):
                        dones.append(item)
                    else:
                        yield relay.shown(item)
            if len(dones) < round_:
                return  # whoever reads on says that an end is missing
            calls = relay.calls()
            if not calls or relay.client_called or dones[-1].finish_reason != "tool_calls":
                break
            self.messages.append(relay.message(calls))
            async with aclosing(runner.run(calls, round_)) as runs:
                async for run in runs:
                    self.runs.append(run)
                    self.messages.append(Message(role="tool", content=run.result, name=run.name, tool_call_id=run.id))
                    yield run
        yield _sum(dones)

    def _next(self, request: Generate, round_: int, dones: Sequence[Done]) -> Generate | None:
        """The request of a round. None: its tokens are spent."""
        if round_ == 1:
            return request
        left = request.max_tokens
        if left is not None and (left := left - sum(done.usage.completion_tokens for done in dones)) <= 0:
            return None
        # What had to be called was called. The results took room that the answer may have been promised.
        choice = "none" if round_ > self._iterations or request.tool_choice == "none" else "auto"
        return request.model_copy(update={"tool_choice": choice, "max_tokens": left, "clip": True})

    async def _said(self, request: Generate) -> AsyncGenerator[Delta | Done]:
        """What the model says next. Results that do not fit its window are taken back, and it is told so, once."""
        for taken_back in (False, True):
            asked = request.model_copy(update={"messages": (*request.messages, *self.messages)})
            try:
                async with aclosing(self._generate(asked)) as items:
                    async for item in items:
                        yield item
            except ContextTooLong as error:
                if taken_back or not self._take_back(error):
                    raise
            else:
                return

    def _take_back(self, error: ContextTooLong) -> bool:
        """Replace the results of the last round. False: there are none."""
        told = refused(f"The results do not fit: {error.prompt_tokens} tokens of {error.window}. Ask for less.")
        found = False
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role != "tool":
                break
            self.messages[index] = self.messages[index].model_copy(update={"content": told.text})
            found = True
        return found


class _Relay:
    """Tells what of a stream is for the client. clients: the names of its own tools.

    Thoughts come before words: those of a round after the first words are not shown.
    """

    def __init__(self, clients: Collection[str]) -> None:
        self._clients = frozenset(clients)
        self._thoughts, self._words = _Joint(), _Joint()

    def next_round(self) -> None:
        """Begin anew, behind what was said."""
        self._deltas: list[Delta] = []
        self._numbers: dict[int, int] = {}  # of the client's calls, as the client counts them
        self._thinks = not self._words.begun
        self._thoughts.pause()
        self._words.pause()

    @property
    def client_called(self) -> bool:
        return bool(self._numbers)

    def shown(self, delta: Delta) -> Delta:
        """The delta without our calls. Its tokens stay counted."""
        self._deltas.append(delta)
        calls = tuple(own for piece in delta.tool_calls if (own := self._own(piece)))
        reasoning = self._thoughts.next(delta.reasoning) if self._thinks else ""
        text = self._words.next(delta.text)
        hidden = (delta.tool_calls or delta.reasoning) and not (text or reasoning or calls)
        logprobs = () if hidden else delta.logprobs
        return replace(delta, text=text, reasoning=reasoning, tool_calls=calls, logprobs=logprobs)

    def calls(self) -> tuple[ToolCall, ...]:
        """Of this round, those that are not the client's, the unknown ones with them."""
        (choice,) = gather(self._deltas)
        return tuple(call for call in choice.tool_calls if call.name not in self._clients)

    def message(self, calls: Sequence[ToolCall]) -> Message:
        """What the model said in this round."""
        (choice,) = gather(self._deltas)
        return choice.message().model_copy(update={"tool_calls": tuple(calls)})

    def _own(self, piece: ToolCallDelta) -> ToolCallDelta | None:
        if piece.name in self._clients:
            self._numbers.setdefault(piece.index, len(self._numbers))
        number = self._numbers.get(piece.index)
        return None if number is None else replace(piece, index=number)


class _Joint:
    """One text of several rounds, with a pause between theirs."""

    def __init__(self) -> None:
        self.begun = self._paused = False

    def pause(self) -> None:
        self._paused = self.begun

    def next(self, text: str) -> str:
        if not text:
            return ""
        self.begun = self.begun or bool(text.strip())
        paused, self._paused = self._paused, False
        return PAUSE + text if paused and not text[0].isspace() else text


def _sum(dones: Sequence[Done]) -> Done:
    """The end of the last round, the tokens and times of all."""
    usage = Usage(**{name: sum(getattr(done.usage, name) for done in dones) for name in Usage.model_fields})
    timings = Timings(**{name: sum(getattr(done.timings, name) for done in dones) for name in Timings.model_fields})
    return Done(dones[-1].ends, usage, timings)
