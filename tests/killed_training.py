"""Kill a training many times at random, and end it: `python -m tests.killed_training FOLDER KILLS ARGUMENTS...`.

A process of its own, which imports once and forks: each start of the training costs no import of torch, and no thread
is copied that a test runner may have. The kills are SIGKILL, at any moment from the first line of the command on.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

# what a training imports when it begins
import tsm_triton.commands.train.command
import tsm_triton.training.results  # noqa: F401
from tsm_triton.cli import main


def start(arguments: list[str]) -> int:
    """The process of a training."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = main(arguments)
    finally:
        os._exit(status)


def first_state(out: Path) -> float:
    """Seconds until a training saves what it can go on from."""
    began = time.monotonic()
    while not list(out.glob("state/state-*")):
        time.sleep(0.005)
    return time.monotonic() - began


def kill_often(out: Path, kills: int, arguments: list[str]) -> None:
    moments, killed, began = random.Random(0), 0, time.monotonic()
    child = start([*arguments, "--out", str(out / "whole")])
    beginning = first_state(out / "whole")
    assert os.waitpid(child, 0)[1] == 0
    steps = time.monotonic() - began - beginning

    resumed = [*arguments, "--out", str(out / "killed"), "--resume"]
    while killed < kills:
        child = start(resumed)
        time.sleep(moments.uniform(beginning / 2, beginning + steps / 12))
        os.kill(child, signal.SIGKILL)  # one that has ended waits for its parent all the same
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            killed += 1
        else:  # so many kills take more than one training; and the machine may be faster by now
            shutil.rmtree(out / "killed")
            beginning, steps = 0.7 * beginning, 0.7 * steps
    assert os.waitpid(start(resumed), 0)[1] == 0
    print(f"killed {killed} times")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_often(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
