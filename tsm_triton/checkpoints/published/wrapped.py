"""Keys of networks in which layers were wrapped: what they are without, and what the wrappers say."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..keys import distinct

__all__ = ["Unwrapped", "unwrapped_keys"]


@dataclass
class Unwrapped:
    """Weights under plain keys.

    Attributes:
        state: the weights.
        shifted: the names of the modules that a shift was wrapped around.
        pooled: the names of stages that a pool was wrapped around.
        non_local: the names of blocks that a non-local block follows.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    shifted: set[str] = field(default_factory=set)
    pooled: set[str] = field(default_factory=set)
    non_local: set[str] = field(default_factory=set)


def unwrapped_keys(
    state: Mapping[str, Tensor], source: str, stages: Iterable[str] = (), non_local: str = "nl"
) -> Unwrapped:
    """Take the parts `net` and `block` out of keys.

    Args:
        state: the weights.
        source: where from, for messages.
        stages: of a network: where one is wrapped, it is a pool that wraps it.
        non_local: what the non-local block beside `block` is called.

    Raises:
        ValueError: a layer that is there with a wrapper, and without.

    Example:
        >>> import torch
        >>> found = unwrapped_keys({"layer2.0.block.conv1.net.weight": torch.zeros(1)}, "it", ["layer2"])
        >>> list(found.state), found.shifted, found.non_local
        (['layer2.0.conv1.weight'], {'layer2.0.conv1'}, {'layer2.0'})
    """
    found = Unwrapped()

    def plain_keys() -> Iterator[tuple[str, Tensor]]:
        for key, value in state.items():
            plain: list[str] = []
            for part in key.split("."):
                name = ".".join(plain)
                if part == "net":
                    (found.pooled if name in stages else found.shifted).add(name)
                elif part == "block":
                    found.non_local.add(name)
                else:
                    plain.append("non_local" if part == non_local else part)
            yield ".".join(plain), value

    found.state = distinct(plain_keys(), source)
    return found
