"""Training keeps what a site was given, and shifts it again in the backward, where its module kept the shifted tensor.

A convolution needs its input for the gradient of its weights. Behind a shift that is a second copy of a map that others
keep anyway: 1.26 times the memory of an unshifted ResNet-50. The forward hook here finds the shifted tensor among what
autograd has just saved and hangs the two hooks of a saved tensor on it. The call that it is for puts it there, and it
takes itself away: calls without gradients do not pay for it. There is no context to leave, so no tensor is left behind
where a forward raises.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..torch_private import (
    DUAL_LEVEL,
    DYNAMO_CONFIG,
    RAW_SAVED,
    dual_numbers,
    is_tracing,
    peek_interpreter_stack,
    put_forward_hook,
    sequence_number,
    storage_key,
    take_forward_hook,
    version_of,
)

__all__ = ["keeps_unshifted", "remember_unshifted"]

# the attribute of a shifted tensor, while its module runs: of the tensor, so that threads, copies and guards of modules
# have no part in it
_UNSHIFTED = "unshifted_for_the_backward"


class _Unshifted(NamedTuple):
    """What a shifted tensor was made of."""

    x: Tensor
    version: int
    shift: Callable[[Tensor], Tensor]
    shifted_version: int

    def shifted(self) -> Tensor:
        if version_of(self.x) != self.version:
            raise RuntimeError(
                f"expected the input {list(self.x.shape)} of a shifted module at version {self.version}, got version "
                f"{version_of(self.x)}: it is needed for gradient computation and has been modified by an inplace "
                "operation. Write that operation out of place; the model without shifts needs it so, too."
            )
        with torch.no_grad():
            return self.shift(self.x)


def keeps_unshifted(x: Any) -> bool:
    """Whether a call of a site with `x` shall be remembered: autograd alone looks on."""
    return (
        torch.is_grad_enabled()
        and type(x) is Tensor
        and not x.is_inference()
        and peek_interpreter_stack() is None
        and dual_numbers[DUAL_LEVEL] < 0
        and not is_tracing()
    )


def remember_unshifted(
    module: nn.Module, x: Tensor, shifted: Tensor, shift: Callable[[Tensor], Tensor]
) -> None:
    """Note on `shifted` that it is `shift(x)`, for the end of this call of the module that takes it.

    Args:
        module: a site, in its forward pre-hook.
        x, shifted: before and behind the shift.
        shift: made of values of this call, whatever the hook that it came from is told later.
    """
    if type(shifted) is Tensor and shifted is not x:
        vars(shifted)[_UNSHIFTED] = _Unshifted(x.detach(), version_of(x), shift, version_of(shifted))
        put_forward_hook(module, _key(), _keep_unshifted)


def _key() -> Any:
    """Of the forward hook: replicas of a module share its hooks, and are run by threads side by side."""
    return _UNSHIFTED, threading.get_ident()


def _keep_unshifted(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
    """The forward hook of a site: where its module saved the shifted tensor, the unshifted one is kept.

    Saved tensors that have hooks already, those of gradient checkpointing or of `save_on_cpu`, are left to them.
    """
    if torch.compiler.is_compiling():  # of a call that raised
        return
    take_forward_hook(module, _key())
    *kwargs, output = rest  # none where torch.ao registered the hook anew
    shifted = args[0] if args else next(iter(kwargs[0].values()), None) if kwargs else None
    if type(shifted) is not Tensor:
        return
    unshifted: _Unshifted | None = vars(shifted).pop(_UNSHIFTED, None)
    if unshifted is None or version_of(shifted) != unshifted.shifted_version:
        return
    for saved in _saved_behind(output, shifted.grad_fn):
        value = saved.data if saved.unpack_hook is None else None
        if isinstance(value, Tensor) and _shares(value, shifted):
            layout = (value.shape, value.stride(), value.storage_offset())
            saved.register_hooks(lambda _: unshifted, functools.partial(_unpacking(), *layout))


def _unpacking() -> Callable[..., Tensor]:
    """What shifts again, outside of the graphs that compiled autograd makes of a backward: they count versions anew."""
    return _never_compiled() if DYNAMO_CONFIG in sys.modules else _in_layout


@functools.cache
def _never_compiled() -> Callable[..., Tensor]:
    never: Any = torch.compiler.disable
    return never(_in_layout)


def _in_layout(size: Any, stride: Any, offset: int, unshifted: _Unshifted) -> Tensor:
    shifted = unshifted.shifted()
    if (shifted.shape, shifted.stride(), shifted.storage_offset()) == (size, stride, offset):
        return shifted
    return shifted.as_strided(size, stride, offset)  # a linear layer flattens all axes but the last


def _shares(value: Tensor, shifted: Tensor) -> bool:
    """Whether a saved tensor is the shifted one or a view of it that `as_strided` can make."""
    return value is shifted or (
        type(value) is Tensor
        and value.dtype == shifted.dtype
        and value.is_conj() == shifted.is_conj()
        and value.is_neg() == shifted.is_neg()
        and storage_key(value) == storage_key(shifted)
    )


def _saved_behind(output: Any, shift: Node | None) -> Iterator[Any]:
    """What is saved by the nodes of autograd's graph between a shift and an output: those that are newer."""
    since = -1 if shift is None else sequence_number(shift)
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    nodes = [x.grad_fn for x in outputs if isinstance(x, Tensor)]
    seen: set[Node] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or sequence_number(node) <= since:
            continue
        seen.add(node)
        for name in _names_of_saved(type(node)):
            try:
                saved = getattr(node, name)
            except RuntimeError:  # freed: the module has gone backwards itself
                continue
            yield from saved if isinstance(saved, tuple) else (saved,)
        nodes += [before for before, _ in node.next_functions]


@functools.lru_cache(maxsize=1000)
def _names_of_saved(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith(RAW_SAVED))
