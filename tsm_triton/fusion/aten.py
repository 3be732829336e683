"""A network on the fused ops, run in torch's own operators: for exporters that know no others."""

from typing import Any

from torch.fx import GraphModule, Interpreter

from .. import ops

__all__ = ["run_in_aten"]


def run_in_aten(network: GraphModule, *inputs: Any) -> Any:
    """What the network returns."""
    return _InAten(network).run(*inputs)


class _InAten(Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        form = ops.ATEN_FORMS.get(target)
        return super().call_function(target if form is None else form, args, kwargs)
