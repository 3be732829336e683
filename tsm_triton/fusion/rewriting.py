"""Rewriting of a model's graph on the fused ops.

The graph is of ATen calls, as `torch.export` and `torch.compile` trace them ahead of autograd. No class of a
model is known here: what counts is which operator follows which.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .. import ops
from . import choice
from .graphs import CONVOLUTIONS, activation_name, arguments, make_functional, name_of, same_kind, site_of
from .layouts import channels_last_maps
from .norms import batch_affine, folded_bias, folded_weight, joined_bias, running_affine
from .steps import cache_of, convolved_step, shift_before, shifted_map, why_cache_is_read

__all__ = ["Fusion", "FusionReport", "fold_constants", "rewrite"]

aten = torch.ops.aten
SLOWER = "the fused form is slower here"


@dataclass(frozen=True)
class Fusion:
    """One place of the graph that was rewritten, or that stayed as it was.

    Attributes:
        site: the name of the module it stands at.
        kind: of a fused place `"shift + conv1x1"`, `"conv1x1 + residual"`, `"shift + conv1x1 + residual"`,
            `"conv1x1"` (with activation or bias alone) or `"residual + shift"`, on a GPU also `"convolution"`,
            `"convolution + residual"`, `"stem"` and `"depthwise"`; of one that stayed `"shift"` or `"residual"`.
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
        batch_norms: how many batch-norms became part of a convolution or of a fused op.
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


def rewrite(graph: Graph, *, training: bool = False) -> FusionReport:
    """Rewrite a graph in place, whose nodes carry their values' shapes in `meta["val"]`.

    Args:
        graph: of ATen calls, batch-norm and convolution not taken apart.
        training: only `residual + shift`, which a gradient goes through at no pass of its own; a
            batch-norm's statistics are computed and updated as ever.

    Example:
        >>> import tsm_triton
        >>> class Branch(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(16, 8, 1)
        ...
        ...     def forward(self, x):
        ...         return self.conv(tsm_triton.temporal_shift(x, 4)).relu()
        >>> x = torch.randn(8, 16, 3, 3).contiguous(memory_format=torch.channels_last)
        >>> program = torch.export.export(Branch(), (x,))
        >>> print(rewrite(program.module().graph))
        1 fused, 0 left, 0 batch-norms folded
        fused  conv  shift + conv1x1  relu
    """
    return _Rewriting(graph, FusionReport()).run(training)


class _Rewriting:
    """One graph on its way."""

    def __init__(self, graph: Graph, report: FusionReport) -> None:
        self.graph = graph
        self.report = report
        # never read from another place than the graph's own
        self.written = make_functional(graph)
        self.channels_last = channels_last_maps(graph)
        # what could have been fused -> why it was not
        self.refused: dict[Node, str] = {}

    def run(self, training: bool) -> FusionReport:
        if not training:
            for node in list(self.graph.nodes):
                if node.target in CONVOLUTIONS and why_not_pointwise(node) is None:
                    self.fuse_pointwise(node)
        for node in list(self.graph.nodes):
            if node.target is ops.temporal_shift and self.why_no_residual_shift(node) is None:
                self.fuse_residual_shift(node, training)
        left = self.left(training)  # in the words of the graph as it was
        if not training:
            for node in list(self.graph.nodes):
                if node.target in CONVOLUTIONS and choice.rewrites_convolutions(node.meta["val"]):
                    self.fuse_convolution(node)
        there = set(self.graph.nodes)
        self.report.left += [entry for node, entry in left.items() if node in there]
        self.graph.lint()
        return self.report

    def fuse_pointwise(self, conv: Node) -> None:
        """`act(norm(conv1x1(shift(x))) + identity)` as one op, with what there is of it."""
        values = arguments(conv)
        x, weight, bias = values["input"], values["weight"], values["bias"]
        shift = shift_before(x)
        if shift is not None and self.why_not_absorbed(shift) is not None:
            shift = None
        cache = None if shift is None else cache_of(shift)
        counts = (1, 0, 0, False)
        if shift is not None:
            x = arguments(shift)["x"]
            counts = counts if cache is not None else shift.args[1:5]
        norm, identity, end = self.running_norm_behind(conv), None, conv
        if norm is not None:
            end = norm
        if (add := _only_user(end)) is not None and (identity := _other_operand(add, end)) is not None:
            end = add
        activation, end = _activation_behind(end)

        parts = ("shift" * (shift is not None), "conv1x1", "residual" * (identity is not None))
        kind = " + ".join(part for part in parts if part)
        dtype = conv.meta["val"].dtype
        # a bias alone is worth the op where it would be a pass of its own
        alone = (norm is None and bias is None) or not choice.rewrites_convolutions(conv.meta["val"])
        if (kind == "conv1x1" and activation == "none" and alone) or x.meta["val"].dtype != dtype:
            return
        reason = self.why_no_pointwise(kind, x, end, {x, cache, weight, bias, identity})
        if reason is not None:
            for node, found in ((shift, shift), (add, identity)):
                if node is not None and found is not None:
                    self.refused[node] = reason
            return
        with self.graph.inserting_before(end):
            if norm is not None:
                weight, bias = self.folded(conv, norm, dtype)
            else:
                weight, bias = self.cast(weight, dtype), self.cast(bias, dtype)
        if identity is not None:
            identity, bias = self.joined(identity, bias, end)
        with self.graph.inserting_before(end):
            if shift is not None and cache is not None:
                fused = convolved_step(self.graph, shift, weight, bias, identity, activation)
            else:
                fused = self.graph.call_function(
                    ops.shift_conv1x1, (x, weight, bias, identity, *counts, activation)
                )
        self.report.fused.append(
            Fusion(site_of(conv) if shift is None else site_of(shift, conv), kind, activation)
        )
        self.replace(end, fused)

    def why_no_pointwise(self, kind: str, x: Node, end: Node, inputs: set[Node | None]) -> str | None:
        """Why a convolution and what stands around it is better left, None where it is not."""
        if not self.written.isdisjoint(inputs):
            return "an input is written in place"
        # The op writes channels_last, and views behind it may rely on what the graph has. Its kernel would copy an
        # input of another layout.
        if end not in self.channels_last or (
            end.meta["val"].device.type != "cpu" and x not in self.channels_last
        ):
            return "the graph is not channels_last here"
        return None if choice.is_faster(kind, x.meta["val"]) else SLOWER

    def fuse_convolution(self, conv: Node) -> None:
        """`act(norm(conv(x)) + identity)` as one op of inference, where the convolution is not a 1x1."""
        values, form = arguments(conv), convolution_form(conv)
        x, weight, bias = values["input"], values["weight"], values["bias"]
        if form is None or x.meta["val"].dim() != 4:
            return
        (c_out, depth, *size), groups, dtype = weight.meta["val"].shape, form[3], conv.meta["val"].dtype
        norm, identity = self.running_norm_behind(conv), None
        end = conv if norm is None else norm
        if 1 < groups == c_out == x.meta["val"].shape[1]:
            kind = "depthwise"
        elif groups == 1 and depth <= 4 and max(size) > 1 and max(form[2]) == 1:
            kind = "stem"
        else:
            kind = "convolution"
            if (add := _only_user(end)) is not None and (identity := _other_operand(add, end)) is not None:
                kind, end = "convolution + residual", add
        activation, end = _activation_behind(end)
        bare = norm is None and bias is None
        useless = {"depthwise": bare and activation == "none", "stem": bare}.get(kind, activation != "relu")
        if (
            useless
            or x.meta["val"].dtype != dtype
            or self.why_no_pointwise(kind, x, end, {x, weight, bias, identity})
        ):
            return
        with self.graph.inserting_before(end):
            if norm is not None:
                weight, bias = self.folded(conv, norm, dtype)
            else:
                weight, bias = self.cast(weight, dtype), self.cast(bias, dtype)
        if identity is not None:
            identity, bias = self.joined(identity, bias, end)
        stride, padding, dilation, _ = form
        calls = {
            "stem": (ops.stem_convolution, (x, weight, bias, stride, padding, activation)),
            "depthwise": (
                ops.depthwise_convolution,
                (x, weight, bias, stride, padding, dilation, activation),
            ),
        }
        call = calls.get(kind, (ops.convolution, (x, weight, bias, identity, *form, activation)))
        with self.graph.inserting_before(end):
            fused = self.graph.call_function(*call)
        self.report.fused.append(Fusion(site_of(conv), kind, activation))
        self.replace(end, fused)

    def joined(self, identity: Node, bias: Node | None, end: Node) -> tuple[Node, Node | None]:
        """The identity without the bias of its own batch-norm, which joins `bias`: so a shortcut needs no pass."""
        if (
            not choice.rewrites_convolutions(identity.meta["val"])
            or identity.target is not aten.batch_norm.default
        ):
            return identity, bias
        conv, dtype = arguments(identity)["input"], identity.meta["val"].dtype
        plain = (
            conv.target in CONVOLUTIONS and convolution_form(conv) is not None and len(identity.users) == 1
        )
        if (
            not plain
            or self.running_norm_behind(conv) is not identity
            or not self.written.isdisjoint({conv, identity})
        ):
            return identity, bias
        with self.graph.inserting_before(conv):
            weight, other = self.folded(conv, identity, dtype)
        with self.graph.inserting_before(end):
            bias = other if bias is None else self.graph.call_function(joined_bias, (other, bias))
        conv.args = (conv.args[0], weight, None, *conv.args[3:])
        self.replace(identity, conv)
        return conv, bias

    def fuse_residual_shift(self, shift: Node, training: bool) -> None:
        """`y = act(norm(branch) + identity)` with the shift of y as one op."""
        y: Node = arguments(shift)["x"]
        activation, add = _activation_of(y)
        if not choice.is_faster("residual + shift", add.meta["val"]):
            return
        branch, identity = _operands(add)
        norm = None
        if training or choice.takes_norm(branch.meta["val"]):
            norm = self.norm_before(branch)
            if norm is None and (norm := self.norm_before(identity)) is not None:
                branch, identity = identity, branch
        scale = bias = None
        with self.graph.inserting_before(y):
            if norm is not None:
                branch, scale, bias = self.affine(norm)
            both = self.graph.call_function(
                ops.residual_shift, (branch, scale, bias, identity, *shift.args[1:5], activation)
            )
            both.meta = {key: value for key, value in shift.meta.items() if key != "val"}
            first, second = [self.graph.call_function(operator.getitem, (both, i)) for i in (0, 1)]
        self.report.fused.append(Fusion(site_of(shift), "residual + shift", activation))
        self.replace(y, first)
        self.replace(shift, second)

    def left(self, training: bool) -> dict[Node, Fusion]:
        """Each shift and each sum of two equal shapes that is still there, and why it is."""
        found = {}
        for node in self.graph.nodes:
            if node.target in (ops.temporal_shift, ops.shift_step):
                reasons = [] if cache_of(node) is not None else [self.why_no_residual_shift(node)]
                if not training:
                    reasons = [self.why_not_absorbed(node), *reasons]
                refused = self.refused.get(node, SLOWER) if None in reasons else None
                reason = refused or ", ".join(reason for reason in reasons if reason is not None)
                found[node] = Fusion(site_of(node), "shift", reason)
            elif not training and node.target is aten.add.Tensor and same_kind(*_operands(node)):
                operands = " + ".join(name_of(operand) for operand in _operands(node))
                reason = self.refused.get(node, f"no 1x1 convolution ends in {operands}")
                found[node] = Fusion(site_of(node), "residual", reason)
        return found

    def why_not_absorbed(self, shift: Node) -> str | None:
        """Why the convolution behind a shift cannot read shifted, None where it can."""
        if (channel_dim := arguments(shift)["channel_dim"]) != 1:
            return f"channels on axis {channel_dim}"
        if shift.args[0] in self.written:
            return "input written in place"
        shifted = shifted_map(shift)
        if shifted is None or len(shifted.users) != 1:
            return f"shift has {0 if shifted is None else len(shifted.users)} users"
        (user,) = shifted.users
        if user.target not in CONVOLUTIONS or arguments(user)["input"] is not shifted:
            return f"{name_of(user)} follows"
        return why_not_pointwise(user) or why_cache_is_read(shift)

    def why_no_residual_shift(self, shift: Node) -> str | None:
        """Why what is shifted is not computed together with its shift, None where it can be."""
        if (channel_dim := arguments(shift)["channel_dim"]) != 1:
            return f"channels on axis {channel_dim}"
        y: Node = arguments(shift)["x"]
        activation, add = _activation_of(y)
        if add.target is not aten.add.Tensor:
            sums = [n for n in y.all_input_nodes if n.target is aten.add.Tensor]
            return f"activation {name_of(y)}" if sums else f"input is {name_of(y)}"
        if activation != "none" and len(add.users) != 1:
            return f"sum has {len(add.users)} users"
        if arguments(add)["alpha"] != 1 or not same_kind(*_operands(add)):
            return "sum of different shapes"
        return None if self.written.isdisjoint({y, *_operands(add)}) else "sum written in place"

    def running_norm_behind(self, conv: Node) -> Node | None:
        """The batch-norm of running statistics that alone reads a convolution."""
        norm = _only_user(conv)
        if norm is None or norm.target is not aten.batch_norm.default:
            return None
        values = arguments(norm)
        statistics = (values["running_mean"], values["running_var"])
        wanted = not values["training"] and None not in statistics and values["input"] is conv
        same_dtype = norm.meta["val"].dtype == conv.meta["val"].dtype
        return norm if wanted and same_dtype else None

    def norm_before(self, branch: Node) -> Node | None:
        """The batch-norm whose output is this branch, where nothing else reads it."""
        if branch.target is not aten.batch_norm.default or len(branch.users) != 1:
            return None
        values = arguments(branch)
        x = values["input"]
        if x in self.written or x.meta["val"].dtype != branch.meta["val"].dtype:
            return None
        statistics = [node for node in (values["running_mean"], values["running_var"]) if node is not None]
        if values["training"]:
            # a cumulative average's momentum is no number; a norm called twice is updated in order
            takes = isinstance(values["momentum"], float) and all(len(node.users) == 1 for node in statistics)
        else:
            takes = len(statistics) == 2
        return branch if takes else None

    def affine(self, norm: Node) -> tuple[Node, Node, Node]:
        """What a batch-norm reads, and the scale and bias that it comes to."""
        values = arguments(norm)
        names = ("weight", "bias", "running_mean", "running_var")
        parameters = [values[name] for name in names]
        if values["training"]:
            both = self.graph.call_function(
                batch_affine, (values["input"], *parameters, values["momentum"], values["eps"])
            )
        else:
            both = self.graph.call_function(running_affine, (*parameters, values["eps"]))
        self.report.batch_norms += 1
        scale, bias = [self.graph.call_function(operator.getitem, (both, i)) for i in (0, 1)]
        return values["input"], scale, bias

    def folded(self, conv: Node, norm: Node, dtype: torch.dtype) -> tuple[Node, Node]:
        """The weight and bias of a convolution that does its batch-norm's work too."""
        of_conv, of_norm = arguments(conv), arguments(norm)
        names = ("weight", "bias", "running_mean", "running_var", "eps")
        gamma, beta, mean, var, eps = (of_norm[name] for name in names)
        self.report.batch_norms += 1
        weight = self.graph.call_function(folded_weight, (of_conv["weight"], gamma, var, eps, dtype))
        weight.meta["val"] = of_conv["weight"].meta["val"].to(dtype)
        bias = (of_conv["bias"], gamma, beta, mean, var, eps, dtype)
        return weight, self.graph.call_function(folded_bias, bias)

    def cast(self, value: Node | None, dtype: torch.dtype) -> Node | None:
        if value is None or value.meta["val"].dtype == dtype:
            return value
        return self.graph.call_function(aten.to.dtype, (value, dtype))

    def replace(self, old: Node, new: Node) -> None:
        """Let `new` stand for `old`, and take out what nothing reads any more."""
        new.meta.update(old.meta)
        if old in self.channels_last:
            self.channels_last.add(new)
        old.replace_all_uses_with(new)
        waiting = [old]
        while waiting:
            node = waiting.pop()
            if node.op == "call_function" and not node.users and node not in self.written:
                waiting += node.all_input_nodes
                self.graph.erase_node(node)


def fold_constants(module: GraphModule, report: FusionReport) -> None:
    """Fold what batch-norms are left into the convolutions before them, and compute all folded weights.

    For a module whose parameters will not change: they become new parameters of `module`. The report counts
    the batch-norms.
    """
    graph = module.graph
    rewriting = _Rewriting(graph, report)
    for conv in [node for node in graph.nodes if node.target in CONVOLUTIONS]:
        norm = rewriting.running_norm_behind(conv)
        if norm is None or arguments(conv).get("transposed", False):
            continue
        with graph.inserting_before(conv):
            weight, bias = rewriting.folded(conv, norm, conv.meta["val"].dtype)
        conv.args = (conv.args[0], weight, bias, *conv.args[3:])
        rewriting.replace(norm, conv)
    for node in list(graph.nodes):
        constants = all(x.op == "get_attr" for x in node.all_input_nodes)  # no computed weight
        if node.target in (folded_weight, folded_bias, joined_bias, running_affine) and constants:
            _compute(module, node)
    graph.eliminate_dead_code()
    graph.lint()


def _compute(module: GraphModule, node: Node) -> None:
    """Run a call of constants, and put its results in its place as parameters of the module."""
    function: Any = node.target
    result = function(
        *(operator.attrgetter(str(x.target))(module) if isinstance(x, Node) else x for x in node.args)
    )
    outputs: list[Node] = list(node.users) if isinstance(result, tuple) else [node]
    for output in outputs:
        index: Any = output.args[1]
        value = result[index] if isinstance(result, tuple) else result
        name = f"{output.name}_constant"
        module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        with module.graph.inserting_before(output):
            constant = module.graph.get_attr(name)
        constant.meta["val"] = value
        output.replace_all_uses_with(constant)
        module.graph.erase_node(output)


def convolution_form(conv: Node) -> tuple[list[int], list[int], list[int], int] | None:
    """Stride, padding and dilation of both axes, and the groups; None of a transposed one or of uneven padding.

    Example:
        >>> program = torch.export.export(torch.nn.Conv2d(3, 8, (1, 3), padding="same"), (torch.ones(1, 3, 4, 4),))
        >>> (conv,) = (node for node in program.graph.nodes if node.target in CONVOLUTIONS)
        >>> convolution_form(conv)
        ([1, 1], [0, 1], [1, 1], 1)
    """
    values = arguments(conv)
    weight, dilation, padding = values["weight"].meta["val"], _pair(values["dilation"]), values["padding"]
    if values.get("transposed", False) or weight.dim() != 4:
        return None
    if padding == "same":
        whole = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        if any(size % 2 for size in whole):
            return None
        padding = [size // 2 for size in whole]
    return _pair(values["stride"]), _pair(0 if padding == "valid" else padding), dilation, values["groups"]


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values


def why_not_pointwise(conv: Node) -> str | None:
    """Why a convolution is no product of its rows with a matrix, None where it is one."""
    values = arguments(conv)
    kernel = values["weight"].meta["val"].shape[2:]
    if values["input"].meta["val"].dim() != 4 or any(size != 1 for size in kernel):
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


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_operand(add: Node, operand: Node) -> Node | None:
    """What is added to `operand`, where it is of the same shape."""
    if add.target is not aten.add.Tensor or arguments(add)["alpha"] != 1 or not same_kind(*_operands(add)):
        return None
    first, second = _operands(add)
    other = second if first is operand else first
    return other if isinstance(other, Node) and other is not operand else None


def _operands(add: Node) -> tuple[Any, Any]:
    values = arguments(add)
    return values["self"], values["other"]


def _activation_behind(node: Node) -> tuple[str, Node]:
    """The activation that alone reads a node and its node, else "none" and the node itself."""
    user = _only_user(node)
    name = None if user is None else activation_name(user)
    return ("none", node) if user is None or name is None else (name, user)


def _activation_of(y: Node) -> tuple[str, Node]:
    """The activation that made a node and what it read, else "none" and the node itself."""
    name = activation_name(y)
    return ("none", y) if name is None else (name, y.all_input_nodes[0])
