"""What a training graph of the backend keeps of a sum that was shifted: the sum, which the backward shifts again."""

import operator
from typing import Any

from torch.fx import Graph, Node

from .. import ops
from ..version import __version__

__all__ = ["joint_pass", "shift_again"]


def joint_pass() -> Any:
    """`shift_again` as Inductor takes it, for its option `joint_custom_pre_pass`."""
    from ..torch_private import CustomGraphPass

    class ShiftAgain(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            shift_again(graph)

        def uuid(self) -> str:
            return f"tsm_triton {__version__} {__name__}"

    return ShiftAgain()


def shift_again(graph: Graph) -> None:
    """Rewrite the graph of a forward and its backward in place, ahead of their partition.

    `residual_shift` gives the sum and the shifted sum. The sum is kept for the backward of its activation, so what the
    backward reads of the shifted one is better shifted anew: one read and one write, where a copy of the map would be
    kept from the forward on.
    """
    late = _behind_gradients(graph)
    for node in graph.find_nodes(op="call_function", target=ops.residual_shift):
        results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        y, shifted = results.get(0), results.get(1)
        if y is None or shifted is None:
            continue
        readers = [user for user in shifted.users if user in late]
        if not readers:
            continue
        *counts, _ = node.args[4:]
        with graph.inserting_before(min(readers)):
            again = graph.call_function(ops.temporal_shift, (y, *counts, 1))
        again.meta["val"] = shifted.meta["val"]
        for reader in readers:
            reader.replace_input_with(shifted, again)


def _behind_gradients(graph: Graph) -> set[Node]:
    """The nodes that depend on the gradients that the backward is given."""
    late: set[Node] = set()
    for node in graph.nodes:
        is_gradient = node.op == "placeholder" and "tangents" in str(node.target)
        if is_gradient or not late.isdisjoint(node.all_input_nodes):
            late.add(node)
    return late
