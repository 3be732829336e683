"""What every section is given, and what it is made of: cases, each built beside others and timed alone."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Row = dict[str, Any]
# The rows of a case, timed alone; made by what builds and checks it.
Measure = Callable[[], Iterable[Row]]
Build = Callable[[], Measure]


@dataclass
class Run:
    """A run's device, its size, and what failed in it.

    What fails inside of `attempt` is noted, and the others go on.
    """

    device: str
    quick: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @contextmanager
    def attempt(self, case: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failures.append((case, _told(error)))

    def compiled(self, call: Any) -> Any:
        """What Inductor makes of a small function on a GPU, where joining passes pays; itself on a CPU."""
        import torch

        return torch.compile(call, dynamic=False) if self.on_gpu else call

    def settle(self) -> None:
        """What was tuned while others used the GPU is forgotten, and memory that nothing holds given back."""
        if not self.on_gpu:
            return
        import torch

        from tsm_triton.kernels.shift_conv1x1 import _shift_conv1x1_kernel

        tuner: Any = _shift_conv1x1_kernel
        tuner.cache_results = False  # on the disk, where it would be found again
        tuner.cache.clear()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Section(NamedTuple):
    """What is built and timed in a process of its own.

    Attributes:
        title: of its part of the page.
        cases: what builds each case, by its name.
        lines: its part of the page, of its rows.
    """

    title: str
    cases: Callable[[Run], dict[str, Build]]
    lines: Callable[[list[Row]], list[str]]


def _told(error: BaseException) -> str:
    """An error and what it came from, a line each."""
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"{type(cause).__name__}: {str(cause).strip()[:500]}")
        cause = cause.__cause__
    return "\n".join(lines)
