"""Ids that sort by when they were made."""

import secrets
import time


def new_id(kind: str) -> str:
    """The kind, the time to 16 ns, 48 random bits: what is later has a greater id (RFC 9562, 6.2, method 3)."""
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    return f"{kind}{milliseconds:012x}{rest_ns // 16:04x}{secrets.token_hex(6)}"
