"""Items of the Responses API, written: an answer's, and those of the messages that a request said.

Ids tell where an item stands (`msg_<response>_<place>`), so that none needs to be stored. Pure functions.
"""

import base64
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from app.arguments import value_of
from app.dialects.events import Json
from app.dialects.openai import CITATION
from app.messages import Alternative, Message, Passage, TokenLogprob, ToolCall

Status = Literal["in_progress", "completed", "incomplete"]
CARRIED = "mindfu1."  # what our `encrypted_content` begins with
LEAST_LOGPROB = -9999.0  # JSON knows no infinity
CUSTOM_INPUT = "input"  # the one argument of a custom tool, which is a function to the model


def input_items(messages: Iterable[Message], own: str, customs: Collection[str] = ()) -> tuple[Json, ...]:
    """Messages as the items that say them. own, customs: as for `output_items`."""
    items: list[Json] = []
    stem = f"{own}_i"
    for message in messages:
        if message.role == "assistant":
            items += _items(message, stem, len(items), customs=customs)
        elif message.role == "tool":
            output = {"type": "function_call_output", "call_id": message.tool_call_id or "", "output": message.content}
            items.append(output | {"id": f"fco_{stem}{len(items)}", "status": "completed"})
        else:
            said = {
                "type": "message",
                "role": message.role,
                "content": [{"type": "input_text", "text": message.content}],
            }
            items.append(said | {"id": f"msg_{stem}{len(items)}", "status": "completed"})
    return tuple(items)


def output_items(
    answer: Message, own: str, *, status: Status, sources: Sequence[Passage] = (), customs: Collection[str] = (),
    logprobs: Sequence[TokenLogprob] = (), carried: bool = False, done: Sequence[Json] = (),
) -> tuple[Json, ...]:  # fmt: skip
    """An answer's items: reasoning, message, calls. At least one: an answer of nothing is an empty message.

    own: what is the response's own in its id. status: of the last item, those before it are complete. customs: the
    names of custom tools. carried: see `reasoning_item`. done: the items before the answer.
    """
    stem = output_stem(own)
    items = _items(answer, stem, len(done), sources=sources, customs=customs, logprobs=logprobs, carried=carried)
    return (*done, *items[:-1], items[-1] | {"status": status})


def search_item(own: str, query: str, sources: Sequence[Passage], *, results: bool) -> Json:
    """A search of files, which came before the answer. sources: what the model was given; results: tell them."""
    found = [
        {"file_id": source.document_id, "filename": source.title, "score": source.score, "text": source.text}
        for source in sources
    ]
    return {
        "type": "file_search_call",
        "id": f"fs_{output_stem(own)}0",
        "status": "completed",
        "queries": [query],
        "results": found if results else None,
    }


def output_stem(own: str) -> str:
    """How the ids of a response's output items begin, behind their kind; their place follows."""
    return f"{own}_"


def reasoning_item(given_id: str, text: str, status: Status, *, carried: bool) -> Json:
    """What the model thought, in the clear. A summary is not made.

    carried: the same once more as `encrypted_content` (which it is not), because clients that keep no state send back
    that and drop the content.
    """
    content = [reasoning_part(text)] if text else []
    item = {"type": "reasoning", "id": given_id, "summary": [], "content": content, "status": status}
    return item | {"encrypted_content": CARRIED + base64.b64encode(text.encode()).decode()} if carried else item


def reasoning_part(text: str) -> Json:
    """The content of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def message_item(given_id: str, part: Json | None, status: Status) -> Json:
    """What the model said. part: see `text_part`; None: nothing yet."""
    content = [] if part is None else [part]
    return {"type": "message", "id": given_id, "role": "assistant", "status": status, "content": content}


def text_part(text: str, sources: Sequence[Passage] = (), logprobs: Sequence[TokenLogprob] = ()) -> Json:
    """The content of a message of the model."""
    told = [logprob(token) for token in logprobs]
    return {"type": "output_text", "text": text, "annotations": annotations(text, sources), "logprobs": told}


def annotations(text: str, sources: Sequence[Passage]) -> list[Json]:
    """The documents that a text cites, in the order in which it does. index: of the source, counted from 0."""
    cited = dict.fromkeys(int(mark[1]) - 1 for mark in CITATION.finditer(text))
    return [
        {"type": "file_citation", "file_id": source.document_id, "filename": source.title, "index": index}
        for index, source in ((index, sources[index]) for index in cited if 0 <= index < len(sources))
    ]


def logprob(token: TokenLogprob) -> Json:
    """One token's log-probability, with the alternatives."""
    return _alternative(token.chosen) | {"top_logprobs": [_alternative(other) for other in token.top]}


def call_item(stem: str, place: int, call: ToolCall, status: Status, customs: Collection[str]) -> Json:
    """A call that the model made, of a function or of a custom tool."""
    item: Json = {"call_id": call.id, "name": call.name, "status": status}
    if call.name in customs:
        return {"type": "custom_tool_call", "id": f"ctc_{stem}{place}", "input": custom_input(call.arguments)} | item
    return {"type": "function_call", "id": f"fc_{stem}{place}", "arguments": call.arguments} | item


def custom_input(arguments: str) -> str:
    """What a custom tool is called with. A call that was cut short has its arguments as they stand."""
    try:
        given = value_of(arguments)
    except ValueError:
        return arguments
    return given[CUSTOM_INPUT] if isinstance(given, dict) and isinstance(given.get(CUSTOM_INPUT), str) else arguments


def response_of(item_id: str) -> str | None:
    """The response that an item of ours belongs to, by the item's id. None: it is none of ours."""
    kind, _, rest = item_id.partition("_")
    response, _, place = rest.rpartition("_")
    return f"resp_{response}" if kind and response and place else None


def _items(
    answer: Message, stem: str, first: int, *, sources: Sequence[Passage] = (), customs: Collection[str] = (),
    logprobs: Sequence[TokenLogprob] = (), carried: bool = False,
) -> list[Json]:  # fmt: skip
    items: list[Json] = []
    if answer.reasoning:
        items.append(reasoning_item(f"rs_{stem}{first}", answer.reasoning, "completed", carried=carried))
    if answer.content or not (answer.reasoning or answer.tool_calls):
        part = text_part(answer.content, sources, logprobs)
        items.append(message_item(f"msg_{stem}{first + len(items)}", part, "completed"))
    for call in answer.tool_calls:
        items.append(call_item(stem, first + len(items), call, "completed", customs))
    return items


def _alternative(token: Alternative) -> Json:
    return {"token": token.text, "logprob": max(token.logprob, LEAST_LOGPROB), "bytes": list(token.data)}
