"""The shift in a graph of torch.fx that traced through the module which has the hook."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.fx import Proxy

from ..torch_private import pre_hooks

if TYPE_CHECKING:
    from .shift_hook import ShiftHook

__all__ = ["TracedShift", "forget_trace", "traced"]

# An attribute of the module that has the hook, and no child of it, until a graph takes it for a child of its own
_ATTRIBUTE = "tsm_triton_shift"


class TracedShift(nn.Module):
    """A module of a graph, which goes on asking the hook how to shift: graphs copy and pickle their modules.

    Shape:
        - Input: as the module's, with the frames where it has several rows a frame and the graph counts them.
        - Output: as the input.
    """

    def __init__(self, hook: "ShiftHook") -> None:
        super().__init__()
        self.hook = hook

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        if not isinstance(x, Proxy):
            return self.hook.shift_in_graph(x, frames)
        arguments = (x, frames) if isinstance(frames, Proxy) else (x,)
        tracer: Any = x.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), arguments, {})


def traced(hook: "ShiftHook", x: Any, frames: Any) -> Any:
    """What a hook gives a tracer of torch.fx: the output of a `TracedShift` in the graph."""
    root = getattr(x.tracer, "root", None)
    for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
        if any(each is hook for each in pre_hooks(module).values()):
            shift = vars(module).get(_ATTRIBUTE)
            if shift is None or shift.hook is not hook:
                shift = vars(module)[_ATTRIBUTE] = TracedShift(hook)
            x.tracer.submodule_paths[shift] = f"{name}.{_ATTRIBUTE}"
            return shift(x, frames)
    raise RuntimeError(
        f"expected a tracer of torch.fx whose root holds the shifted module, got {type(x.tracer).__name__} with "
        f"{type(root).__name__} as its root. Pass the model itself to the tracer, or tsm_triton.unpatch(model)."
    )


def forget_trace(module: nn.Module) -> None:
    """Take the shift out of a graph's module, or what a trace has put into a model's and so into its graphs.

    Graph and model have the modules in common that were not traced through, so that the others follow these: a graph
    of which half is shifted is neither.
    """
    shift = module if isinstance(module, TracedShift) else vars(module).pop(_ATTRIBUTE, None)
    if shift is not None:
        shift.hook.enabled = False
        shift.hook.removed = True
