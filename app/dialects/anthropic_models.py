"""Models as Anthropic's Models API lists them: https://platform.claude.com/docs/en/api/models/list. Pure functions."""

from collections.abc import Sequence
from datetime import UTC, datetime

from app.dialects.events import Json
from app.errors import NotFound
from app.messages import ModelCard


def model(name: str, created: int, card: ModelCard) -> Json:
    """A model that chats. created: epoch seconds; card: of the model behind the name."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_input_tokens": card.window,
        "max_tokens": card.window,
        "lifecycle": "active",
        "capabilities": None,
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
    }


def page(models: Sequence[Json], *, limit: int, after: str | None, before: str | None) -> Json:
    """A page of them, right behind one or right before one. Raises NotFound where that is none of them."""
    ids = [one["id"] for one in models]
    for cursor in (after, before):
        if cursor is not None and cursor not in ids:
            raise NotFound("model", cursor)
    behind = ids.index(after) + 1 if after is not None else 0
    end = ids.index(before) if before is not None else len(ids)
    start = max(behind, end - limit) if before is not None else behind
    shown = list(models[start : min(end, start + limit)])
    more = start > behind if before is not None else start + limit < end
    return {
        "data": shown,
        "has_more": more,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }
