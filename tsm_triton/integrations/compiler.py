"""Rewriting of a model's graph on the fused ops.

The graph is functional ATen, as `torch.export` and AOTAutograd give it. No class of a model is known here:
what counts is which operator follows which.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .. import ops

__all__ = ["Fusion", "FusionReport", "fold_batch_norms", "fuse_pointwise", "fuse_residual_shifts", "rewrite"]

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, aten.convolution.default)
BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.hardswish.default: "hardswish",
    aten.silu.default: "silu",
}


@dataclass(frozen=True)
class Fusion:
    """One place of the graph that was rewritten, or that stayed as it was.

    Attributes:
        site: the name of the module it stands at.
        kind: `"shift + conv1x1"`, `"conv1x1 + residual"`, `"residual + shift"`; of a place that stayed,
            `"shift"` or `"residual"`.
        reason: the activation that was taken along, or why nothing was rewritten.
    """

    site: str
    kind: str
    reason: str


@dataclass
class FusionReport:
    """What a rewriting did to a graph; `print` shows it as a table.

    Attributes:
        fused: the places that run on a fused op now.
        left: the shifts and residual sums that stayed, with the reasons.
        batch_norms: how many batch-norms were folded into the convolution before them.
    """

    fused: list[Fusion] = field(default_factory=list)
    left: list[Fusion] = field(default_factory=list)
    batch_norms: int = 0

    def __str__(self) -> str:
        rows = [("fused", entry) for entry in self.fused] + [("left", entry) for entry in self.left]
        head = f"{len(self.fused)} fused, {len(self.left)} left, {self.batch_norms} batch-norms folded"
        site, kind = (max((len(getattr(e, name)) for _, e in rows), default=0) for name in ("site", "kind"))
        return "\n".join(
            [
                head,
                *(f"{what:<5}  {e.site:<{site}}  {e.kind:<{kind}}  {e.reason}".rstrip() for what, e in rows),
            ]
        )


def rewrite(module: GraphModule) -> FusionReport:
    """Rewrite a functional ATen graph in place, whose nodes carry their values' shapes in `meta["val"]`.

    Example:
        >>> import tsm_triton
        >>> class Branch(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(16, 8, 1)
        ...
        ...     def forward(self, x):
        ...         return self.conv(tsm_triton.temporal_shift(x, 4)).relu()
        >>> program = torch.export.export(Branch(), (torch.randn(8, 16, 3, 3),)).run_decompositions({})
        >>> print(rewrite(program.module()))
        1 fused, 0 left, 0 batch-norms folded
        fused  conv  shift + conv1x1  relu
    """
    report = FusionReport(batch_norms=fold_batch_norms(module))
    fuse_pointwise(module.graph, report)
    fuse_residual_shifts(module.graph, report)
    _report_left(module.graph, report)
    module.graph.lint()
    module.recompile()
    return report


def is_faster(kind: str, node: Node) -> bool:
    """Whether the fused form of a place is the faster one; `node.meta["val"]` holds its shape and dtype.

    The place where measurements go. None has decided anything yet: the answer is yes everywhere, which the
    byte counts of the design argue for and no clock has confirmed.
    """
    return True


def fold_batch_norms(module: GraphModule) -> int:
    """Fold every batch-norm of constants into the convolution before it that nothing else reads.

    The arithmetic is done in fp64. Folded weights are new parameters of `module`; the old ones stay.

    Returns:
        How many there were.
    """
    folded = 0
    for norm in list(module.graph.nodes):
        if norm.target not in BATCH_NORMS or arguments(norm).get("training", False):
            continue
        conv: Node = arguments(norm)["input"]
        output = _first_output(norm)
        if conv.target not in CONVOLUTIONS or len(conv.users) != 1 or output is None:
            continue
        weights = _constants(module, conv, ("weight", "bias"))
        norms = _constants(module, norm, ("weight", "bias", "running_mean", "running_var"))
        if weights is None or norms is None or arguments(conv).get("transposed", False):
            continue
        _set_weights(module, conv, *_folded(weights, norms, arguments(norm)["eps"]))
        output.replace_all_uses_with(conv)
        folded += 1
    module.graph.eliminate_dead_code()
    return folded


def _folded(weights: list[Any], norms: list[Any], eps: float) -> tuple[Tensor, Tensor]:
    (weight, bias), (gamma, beta, mean, var) = weights, norms
    scale = (var.double() + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * scale if beta is None else shift * scale + beta.double()
    scaled = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def fuse_pointwise(graph: torch.fx.Graph, report: FusionReport) -> None:
    """`act(conv1x1(shift(x)) + identity)` as one op, where there is the shift, or the identity, or both."""
    for conv in list(graph.nodes):
        if conv.target not in CONVOLUTIONS or why_not_pointwise(conv) is not None:
            continue
        values = arguments(conv)
        shift = values["input"] if _absorbable(values["input"]) else None
        end, identity = conv, None
        if (add := _only_user(conv)) is not None and (identity := _other_operand(add, conv)) is not None:
            end = add
        if shift is None and identity is None:
            continue
        kind = " + ".join(
            ["shift"] * (shift is not None) + ["conv1x1"] + ["residual"] * (identity is not None)
        )
        if not is_faster(kind, conv):
            continue
        activation, end = _activation_behind(end)
        x, *counts = (values["input"], 1, 0, 0, True) if shift is None else shift.args[:5]
        with graph.inserting_before(end):
            fused = graph.call_function(
                ops.shift_conv1x1, (x, values["weight"], values["bias"], identity, *counts, activation)
            )
        report.fused.append(
            Fusion(site_of(conv) if shift is None else site_of(shift, conv), kind, activation)
        )
        _replace(end, fused)
    graph.eliminate_dead_code()


def fuse_residual_shifts(graph: torch.fx.Graph, report: FusionReport) -> None:
    """`y = act(branch + identity)` with the shift of y, which both are read, as one op."""
    for shift in _shifts(graph):
        if why_no_residual_shift(shift) is not None or not is_faster("residual + shift", shift):
            continue
        y: Node = arguments(shift)["x"]
        activation, add = _activation_of(y)
        branch, identity = _operands(add)
        with graph.inserting_before(y):
            both = graph.call_function(
                ops.residual_shift, (branch, None, None, identity, *shift.args[1:5], activation)
            )
            both.meta = {key: value for key, value in shift.meta.items() if key != "val"}
            outputs = [graph.call_function(operator.getitem, (both, index)) for index in (0, 1)]
        report.fused.append(Fusion(site_of(shift), "residual + shift", activation))
        _replace(shift, outputs[1])
        _replace(y, outputs[0])
    graph.eliminate_dead_code()


def _report_left(graph: torch.fx.Graph, report: FusionReport) -> None:
    """Say of each shift and each sum of two equal shapes that is still there why it is."""
    for node in graph.nodes:
        if node.target is ops.temporal_shift:
            reasons = [why_not_absorbed(node), why_no_residual_shift(node)]
            slower = "the fused form is slower here" if None in reasons else None
            reason = slower or ", ".join(reason for reason in reasons if reason is not None)
            report.left.append(Fusion(site_of(node), "shift", reason))
        elif node.target is aten.add.Tensor and _same_kind(*_operands(node)):
            operands = " + ".join(_name_of(operand) for operand in _operands(node))
            report.left.append(Fusion(site_of(node), "residual", f"no 1x1 convolution ends in {operands}"))


def why_not_absorbed(shift: Node) -> str | None:
    """Why the convolution behind a shift cannot read shifted, None where it can."""
    if (channel_dim := arguments(shift)["channel_dim"]) != 1:
        return f"channels on axis {channel_dim}"
    if len(shift.users) != 1:
        return f"shift has {len(shift.users)} users"
    (user,) = shift.users
    if user.target not in CONVOLUTIONS or arguments(user)["input"] is not shift:
        return f"{_name_of(user)} follows"
    return why_not_pointwise(user)


def why_not_pointwise(conv: Node) -> str | None:
    """Why a convolution is no product of its rows with a matrix, None where it is one."""
    values = arguments(conv)
    kernel = values["weight"].meta["val"].shape[2:]
    if len(kernel) != 2 or any(size != 1 for size in kernel):
        return f"conv is {'x'.join(map(str, kernel))}"
    padding = values["padding"]
    if padding in ("valid", "same"):  # the same for a 1x1
        padding = 0
    for name, value, plain in (("stride", values["stride"], 1), ("padding", padding, 0)):
        sizes = value if isinstance(value, (list, tuple)) else [value]
        if any(size != plain for size in sizes):
            return f"{name} {max(sizes)}"
    if values["groups"] != 1:
        return f"groups {values['groups']}"
    return "transposed" if values.get("transposed", False) else None


def why_no_residual_shift(shift: Node) -> str | None:
    """Why what is shifted is not computed together with its shift, None where it can be."""
    if (channel_dim := arguments(shift)["channel_dim"]) != 1:
        return f"channels on axis {channel_dim}"
    y: Node = arguments(shift)["x"]
    activation, add = _activation_of(y)
    if add.target is not aten.add.Tensor:
        sums = [n for n in y.all_input_nodes if n.target is aten.add.Tensor]
        return f"activation {_name_of(y)}" if sums else f"input is {_name_of(y)}"
    if activation != "none" and len(add.users) != 1:
        return f"sum has {len(add.users)} users"
    if arguments(add)["alpha"] != 1 or not _same_kind(*_operands(add)):
        return "sum of different shapes"
    return None


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by their names in the schema, defaults included."""
    target: Any = node.target
    schema = target._schema.arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values.update(zip((a.name for a in schema), node.args, strict=False))
    return {**values, **node.kwargs}


def site_of(*nodes: Node) -> str:
    """The name of the innermost module that a node was traced in, the first that stands in one."""
    for node in nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and (path := next(reversed(stack.values()))[0]):
            return path
    return nodes[0].name


def _shifts(graph: torch.fx.Graph) -> Iterator[Node]:
    yield from [node for node in graph.nodes if node.target is ops.temporal_shift]


def _absorbable(node: Any) -> bool:
    return node.target is ops.temporal_shift and why_not_absorbed(node) is None


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_operand(add: Node, operand: Node) -> Node | None:
    """What is added to `operand`, where it is of the same shape."""
    if add.target is not aten.add.Tensor or arguments(add)["alpha"] != 1 or not _same_kind(*_operands(add)):
        return None
    first, second = _operands(add)
    other = second if first is operand else first
    return other if isinstance(other, Node) and other is not operand else None


def _operands(add: Node) -> tuple[Any, Any]:
    values = arguments(add)
    return values["self"], values["other"]


def _same_kind(first: Any, second: Any) -> bool:
    """Whether two operands agree in shape and dtype, so that their sum broadcasts nothing."""
    a, b = (x.meta.get("val") if isinstance(x, Node) else None for x in (first, second))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return a.dim() == 4 and a.dtype == b.dtype and a.is_floating_point() and _same_sizes(a.shape, b.shape)


def _same_sizes(first: Any, second: Any) -> bool:
    # symbolic sizes compare by their expressions: no guard is made
    return len(first) == len(second) and all(str(a) == str(b) for a, b in zip(first, second, strict=True))


def _activation_name(node: Node) -> str | None:
    if node.target is aten.hardtanh.default:
        values = arguments(node)
        return "relu6" if (values["min_val"], values["max_val"]) == (0, 6) else None
    return ACTIVATIONS.get(node.target)


def _activation_behind(node: Node) -> tuple[str, Node]:
    """The activation that alone reads a node and its node, else "none" and the node itself."""
    user = _only_user(node)
    name = None if user is None else _activation_name(user)
    return ("none", node) if user is None or name is None else (name, user)


def _activation_of(y: Node) -> tuple[str, Node]:
    """The activation that made a node and what it read, else "none" and the node itself."""
    name = _activation_name(y)
    return ("none", y) if name is None else (name, y.all_input_nodes[0])


def _name_of(node: Any) -> str:
    target = getattr(node, "target", node)
    if target is operator.getitem:
        return _name_of(node.args[0])
    return str(getattr(target, "_opname", None) or getattr(target, "__name__", target))


def _replace(old: Node, new: Node) -> None:
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)


def _first_output(node: Node) -> Node | None:
    """The only output of a node that is read, where that is the first one."""
    if node.target is aten.batch_norm.default:
        return node
    read = [user for user in node.users if user.users]
    return read[0] if len(read) == 1 and read[0].args[1:] == (0,) else None


def _constants(module: GraphModule, node: Node, names: tuple[str, ...]) -> list[Any] | None:
    """The tensors that a node is given, None for an absent one; no list where one is computed."""
    values = [arguments(node)[name] for name in names]
    if any(value is not None and value.op != "get_attr" for value in values):
        return None
    find: Callable[[str], Any] = operator.attrgetter
    return [None if value is None else find(value.target)(module) for value in values]


def _set_weights(module: GraphModule, conv: Node, weight: Tensor, bias: Tensor) -> None:
    nodes = []
    with module.graph.inserting_before(conv):
        for name, value in (("weight", weight), ("bias", bias)):
            target = f"{conv.name}_folded_{name}"
            module.register_parameter(target, torch.nn.Parameter(value, requires_grad=False))
            nodes.append(module.graph.get_attr(target))
            nodes[-1].meta["val"] = value
    conv.args = (conv.args[0], *nodes, *conv.args[3:])
