"""Log lines. In a replica they go where Serve's own go and in its form, text or JSON (`logging_config.encoding`).

One line for each answer, with the ids that it is known by, and no text of anybody unless `gateway.log_texts` is set.
"""

import logging

from app.turns import Turn

SERVE, OURS = "ray.serve", ("app", "deployments", "train")

log = logging.getLogger(__name__)


def join_serve() -> None:
    """Let what is logged here go to Serve's file of this replica. Elsewhere there is none, and nothing changes."""
    serve = logging.getLogger(SERVE)
    if serve.handlers:
        for name in OURS:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = list(serve.handlers), False
            logger.setLevel(serve.level)


def answered(turn: Turn, *, texts: bool) -> None:
    """One answer, however it ended."""
    usage, timings = turn.usage, turn.timings
    told = {
        "turn_id": turn.id,
        "answer_id": turn.request_id,
        "x_request_id": turn.extras.get("x_request_id"),
        "conversation_id": turn.conversation_id,
        "tenant": turn.tenant,
        "key_id": turn.extras.get("key_id"),
        "client": turn.client,
        "model": turn.model,
        "adapter": turn.adapter,
        "status": turn.status,
        "finish_reason": turn.finish_reason,
        "error": turn.error,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "sources": len(turn.sources),
        "queued_s": timings.queued_s if timings else None,
        "first_token_s": turn.first_token_s,
        "latency_s": turn.latency_s,
    }
    if texts:
        told["messages"] = [message.model_dump(exclude_defaults=True) for message in turn.messages]
        told["answer"] = turn.answer.model_dump(exclude_defaults=True)
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, " if usage else ""
    log.info("%s %s by %s: %s%.2f s", turn.request_id, turn.status, turn.model, tokens, turn.latency_s, extra=told)
