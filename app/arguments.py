"""The arguments of calls: JSON text, as a model wrote it or a client sent it back. Mostly."""

import json
from typing import Any

from pydantic_core import from_json


def value_of(arguments: str) -> Any:
    """What they say. Raises ValueError where that is nothing which could be written again.

    Python's own parser takes more (half a surrogate pair, NaN) or ends otherwise (RecursionError): one odd call would
    be a failure of ours, of this answer and of every one that goes on from it.
    """
    found = from_json(arguments, allow_inf_nan=False)
    json.dumps(found, allow_nan=False)  # 1e999 was read as infinity
    return found
