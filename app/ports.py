"""Whether a port can be listened on."""

import socket


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there; a socket that is still closing is in nobody's way."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True
