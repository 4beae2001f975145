"""How much work something is, told so that neighbours on the machine and other tests do not count."""

import gc
import time
from collections.abc import Callable


def work_s(call: Callable[[], object], tries: int = 3) -> float:
    """The processor seconds of the quickest of some tries, without garbage collection.

    A full collection alone takes a second in a process that thousands of tests have filled.
    """
    collecting, taken = gc.isenabled(), list[float]()
    gc.disable()
    try:
        for _ in range(tries):
            began = time.process_time()
            call()
            taken.append(time.process_time() - began)
    finally:
        if collecting:
            gc.enable()
    return min(taken)
