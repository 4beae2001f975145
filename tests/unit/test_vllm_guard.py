"""No process outlives the replica that started it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from app.vllm.guard import Guard, children

ROOT = Path(__file__).parents[2]
PARENT = """
import subprocess, sys, time, psutil
from app.vllm.guard import Guard
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
guard = Guard([psutil.Process(child.pid)])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_had_started_ends_with_it():
    """Nothing of it gets to run: SIGKILL."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_of_the_same_number_is_left_alone():
    """What is watched is known by its start, too."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:

        class Earlier(psutil.Process):
            def create_time(self) -> float:
                return super().create_time() - 60

        guard = Guard([Earlier(other.pid)])
        guard.close()
        assert other.poll() is None
        Guard([psutil.Process(other.pid)]).close()
        assert other.wait() < 0


def test_a_child_that_has_ended_is_none():
    """It stays in the list of processes until its parent asks how it ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in [one.pid for one in children()]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.pid not in [one.pid for one in children()]
