"""A shop's conversations, for training runs whose outcome does not matter."""

import json


def shop() -> bytes:
    """Conversations that are learnt easily."""
    lines = [
        {"messages": [
            {"role": "user", "content": f"Where is my order {n * 37}, of the {n}th?"},
            {"role": "assistant", "content": f"Order {n * 37} is on its way."},
        ]}
        for n in range(60)
    ]  # fmt: skip
    return "\n".join(map(json.dumps, lines)).encode()
