"""Which ports can be listened on."""

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


def free_port(host: str) -> int:
    """One that a server could listen on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.bind((host, 0))
        port: int = trial.getsockname()[1]
        return port
