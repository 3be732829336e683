import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch._functorch.config
from hypothesis import settings
from tqdm import tqdm

HAS_CUDA = torch.cuda.is_available()

# Triton first, without the variable: its own library functions must stay compilable, for the tests that
# compile kernels ahead of time. Then our kernels under it, so that CPU tensors can run them.
import triton  # noqa: E402, F401

if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
    import tsm_triton.kernels.depthwise
    import tsm_triton.kernels.residual_shift
    import tsm_triton.kernels.shift_conv1x1
    import tsm_triton.kernels.shift_step
    import tsm_triton.kernels.stem
    import tsm_triton.kernels.temporal_shift  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

    # It looks for an overflow of 32 bits in each sum and product, a third of its time, which maps of a few elements
    # have none of. `tsm-triton verify` leaves it on.
    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)

# Its key knows our ops by their names alone: after a change of a backward, a test would run the one before.
torch._functorch.config.enable_autograd_cache = False

# xdist's workers share the cores: a thread pool of all of them in each makes the suite three times slower
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def signals_heard() -> Iterator[None]:
    """Signals as a terminal has them: nohup and a shell's background jobs ignore some."""
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    before = {name: signal.signal(getattr(signal, name), handler) for name, handler in usual.items()}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)
    # a bar that a signal ended while it was drawn keeps tqdm's lock, for which other threads would wait for ever
    tqdm.set_lock(threading.RLock())


@pytest.fixture(autouse=True, scope="module")
def no_graphs_of_other_files() -> None:
    """Models of one class share a limit of compiled graphs, which those of other files count towards."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`cuda` tests are collected everywhere and say why they do not run."""
    if not HAS_CUDA:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA or AMD GPU, torch sees none"))


@pytest.fixture(params=["copies", "triton"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where to put tensors so that the op runs each of its implementations.

    The Triton kernel runs on the GPU where there is one, and in the interpreter elsewhere.
    """
    if request.param == "triton":
        if HAS_CUDA:
            return "cuda"
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """`torch.empty` hands out NaN and the largest integers, so that no test passes on fresh zeros."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
