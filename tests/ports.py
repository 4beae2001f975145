"""Ports for servers that begin to listen seconds after their port was chosen."""

import random

from app.ports import is_free


def free_port() -> int:
    """One of this machine alone, below those that a system gives to whoever asks for any: nobody takes it meanwhile.

    (Those are 32768 and up on Linux, 49152 and up on macOS. Ray's workers have 10002 to 19999.)
    """
    while not is_free("127.0.0.1", port := random.randrange(20_000, 30_000)):
        pass
    return port
