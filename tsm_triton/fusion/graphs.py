"""Graphs of ATen calls as `torch.export` and `torch.compile` trace them: reading them, in-place calls undone."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .. import ops
from ..activations import ACTIVATIONS
from ..torch_private import OpOverload, name_of_op, name_of_overload, schema_of

__all__ = [
    "CONVOLUTIONS",
    "activation_behind",
    "activation_name",
    "activation_of",
    "arguments",
    "is_sum",
    "known",
    "make_functional",
    "name_of",
    "only_user",
    "operands",
    "other_operand",
    "same_kind",
    "site_of",
]

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, aten.convolution.default)
# Calls that return memory of their own whatever their arguments. A schema does not tell: dropout has no
# alias in its own and returns its input in eval mode.
FRESH = {
    *CONVOLUTIONS,
    *(target for activation in ACTIVATIONS.values() for target, _ in activation.calls),
    aten.batch_norm.default,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.linear.default,
    aten.mean.dim,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.exp.default,
    aten.gelu.default,
    ops.temporal_shift,
    ops.shift_step,
}


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by their names in the schema, defaults included."""
    target: Any = node.target
    schema = schema_of(target).arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values.update(zip((a.name for a in schema), node.args, strict=False))
    return {**values, **node.kwargs}


def make_functional(graph: Graph) -> set[Node]:
    """Replace in-place calls by their functional twins, where what they write is a fresh value of the graph.

    Returns:
        The values that are still written in place, with all that may share their memory: they hold one
        thing here and another there, so no rewriting may read them from another place.

    Example:
        >>> graph = Graph()
        >>> x = graph.placeholder("x")
        >>> total = graph.call_function(aten.add.Tensor, (x, x))
        >>> y = graph.call_function(aten.relu_.default, (total,))
        >>> _ = graph.output(y)
        >>> make_functional(graph)
        set()
        >>> [name_of(node) for node in graph.nodes]
        ['x', 'add', 'relu', 'output']
    """
    written: set[Node] = set()
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        targets = _written(node)
        if not targets:
            continue
        twin, (target, *others) = _functional_twin(node), targets
        later = [user for user in target.users if order[user] > order[node]]
        earlier = [user for user in target.users if order[user] < order[node]]
        shared = target.target not in FRESH or any(user.target not in FRESH for user in earlier)
        if twin is None or others or shared or not _of_one_dtype(node):
            written.update(targets)
            continue
        node.target = twin
        for user in later:
            user.replace_input_with(target, node)
    return _sharing(written)


def _written(node: Node) -> list[Node]:
    """The values that a call writes, by its schema."""
    if not isinstance(node.target, OpOverload) or not schema_of(node.target).is_mutable:
        return []
    values = arguments(node)
    names = [
        a.name for a in schema_of(node.target).arguments if a.alias_info is not None and a.alias_info.is_write
    ]
    found: list[Node] = []
    for name in names:
        value = values.get(name)
        found += [x for x in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(x, Node)]
    return found


def _functional_twin(node: Node) -> Any:
    """`aten.relu.default` for `aten.relu_.default`, None where there is none or it is not fresh."""
    target: Any = node.target
    name = schema_of(target).name.removeprefix("aten::")
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    twin = getattr(packet, name_of_overload(target), None)
    return twin if twin in FRESH else None


def _of_one_dtype(node: Node) -> bool:
    """Whether a call reads tensors of one dtype: in place, others are cast to what is written."""
    values = [operand.meta.get("val") for operand in node.all_input_nodes]
    return len({value.dtype for value in values if isinstance(value, Tensor)}) <= 1


def _sharing(values: Iterable[Node]) -> set[Node]:
    """The values and all that may share memory with them: up and down every call that is not fresh."""
    found, waiting = set(), list(values)
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        waiting += [user for user in node.users if user.target not in FRESH]
        if node.target not in FRESH:
            waiting += node.all_input_nodes
    return found


def activation_name(node: Node) -> str | None:
    """Which activation of the fused ops a node is, None for any other node."""
    for name, activation in ACTIVATIONS.items():
        for target, values in activation.calls:
            if node.target is target and values.items() <= arguments(node).items():
                return name
    return None


def activation_behind(node: Node) -> tuple[str, Node]:
    """The activation that alone reads a node and its node, else "none" and the node itself."""
    user = only_user(node)
    name = None if user is None else activation_name(user)
    return ("none", node) if user is None or name is None else (name, user)


def activation_of(y: Node) -> tuple[str, Node]:
    """The activation that made a node and what it read, else "none" and the node itself."""
    name = activation_name(y)
    return ("none", y) if name is None else (name, y.all_input_nodes[0])


def only_user(node: Node) -> Node | None:
    """What alone reads a node."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_sum(node: Node) -> bool:
    """Whether a node adds two maps of one shape and dtype."""
    return node.target is aten.add.Tensor and same_kind(*operands(node))


def operands(add: Node) -> tuple[Any, Any]:
    """The two that a sum adds."""
    values = arguments(add)
    return values["self"], values["other"]


def other_operand(add: Node, operand: Node) -> Node | None:
    """What is added to `operand`, where it is of the same shape."""
    if not is_sum(add) or arguments(add)["alpha"] != 1:
        return None
    first, second = operands(add)
    other = second if first is operand else first
    return other if isinstance(other, Node) and other is not operand else None


def same_kind(first: Any, second: Any) -> bool:
    """Whether two operands are float maps of one shape and dtype, so that their sum broadcasts nothing."""
    a, b = (x.meta.get("val") if isinstance(x, Node) else None for x in (first, second))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    # symbolic sizes compare by their expressions: no guard is made
    same_shape = [str(size) for size in a.shape] == [str(size) for size in b.shape]
    return a.dim() == 4 and a.dtype == b.dtype and a.is_floating_point() and same_shape


def known(condition: Any) -> bool:
    """Whether it is true of all sizes that a symbol stands for, without a guard."""
    if isinstance(condition, bool):
        return condition
    # brings sympy along: half a second, and whoever has symbols has it already
    from ..torch_private import statically_known_true

    return statically_known_true(condition)


def site_of(*nodes: Node) -> str:
    """The name of the innermost module that a node was traced in, the first that stands in one."""
    for node in nodes:
        stack = node.meta.get("nn_module_stack")
        # Dynamo starts from the model, torch.export inside it
        if stack and (path := next(reversed(stack.values()))[0].removeprefix("L['self'].")):
            return path
    return nodes[0].name


def name_of(value: Any) -> str:
    """A node's operator, for messages."""
    target = getattr(value, "target", value)
    return str(name_of_op(target) or getattr(target, "__name__", target))
