"""The shift in a graph of torch.fx that traced through the shifted module."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from ..torch_private import pre_hooks
from .hook_calls import no_script

if TYPE_CHECKING:
    from .shift_hook import ShiftHook

__all__ = ["TracedShift", "forget_trace", "put_into_graph", "untraced_name"]

# An attribute of the traced module and no child of it, where a graph finds what becomes a child of its own.
_ATTRIBUTE = "tsm_triton_shift"


class TracedShift(nn.Module):
    """A graph's module in the place of a hook: graphs copy and pickle their modules, and run no hook of others.

    It asks the traced module's hooks at each call, as the modules that graph and model have in common ask theirs: so
    both are patched and unpatched together, and no graph is shifted by half.

    Shape:
        - Input: as the module's, with the frames where it has several rows a frame and the graph counts them.
        - Output: as the input.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # not the module, whose other parts a graph that was quantised need not keep
        self.hooks = pre_hooks(module)

    @property
    def hook(self) -> "ShiftHook | None":
        """The module's shift, None where it was taken off."""
        return next((hook for hook in self.hooks.values() if _shifts(hook) and not hook.removed), None)

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        if isinstance(x, Proxy):  # the graph is traced once more
            arguments = (x, frames) if isinstance(frames, Proxy) else (x,)
            tracer: Any = x.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), arguments, {})
        hook = self.hook
        return x if hook is None else hook.shift_in_graph(x, frames)

    def take_off(self) -> None:
        """Take the shift off the traced module."""
        for key, hook in list(self.hooks.items()):
            if _shifts(hook):
                del self.hooks[key]
                hook.removed = True

    def __prepare_scriptable__(self) -> nn.Module:
        raise no_script()


def put_into_graph(module: nn.Module, x: Proxy, frames: Any) -> Any:
    """What the hook of a module gives to a tracer of torch.fx: the output of a `TracedShift`."""
    if not isinstance(x.tracer, Tracer):
        raise RuntimeError(
            f"expected a torch.fx.Tracer, which knows the model's modules, got {type(x.tracer).__name__}. Use "
            "torch.fx.symbolic_trace(model), or call tsm_triton.unpatch(model) before."
        )
    shift = vars(module)[_ATTRIBUTE] = TracedShift(module)
    paths: Any = x.tracer.submodule_paths
    paths[shift] = f"{x.tracer.path_of_module(module)}.{_ATTRIBUTE}"
    return shift(x, frames)


def untraced_name(name: str) -> str:
    """The name of the module whose shift a graph has there."""
    return name.removesuffix(_ATTRIBUTE).removesuffix(".")


def forget_trace(module: nn.Module) -> None:
    """Leave nothing in a module that a trace has put there."""
    vars(module).pop(_ATTRIBUTE, None)


def _shifts(hook: Any) -> bool:
    return hasattr(hook, "shift_in_graph")
