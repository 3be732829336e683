"""What tests of `tsm-triton train` share: options of a training of seconds, and two processes side by side."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def small(size: int = 24) -> list[str]:
    """A network and clips for which an epoch takes a second on a CPU, read by the process itself."""
    network = f"--model test_resnet --num-segments 2 --size {size}"
    return [*network.split(), "--workers", "0", "--device", "cpu"]


def torchrun(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command by two processes, which end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*script, "-m", "tsm_triton", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done
