"""Batch-norms of a graph: found beside a convolution or a sum, and taken into it."""

import hashlib
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .editing import EditedGraph
from .graphs import CONVOLUTIONS, arguments, only_user
from .norms import batch_affine, folded_bias, folded_weight, joined_bias, running_affine
from .report import FusionReport

__all__ = ["affine", "fold_constants", "folded", "norm_before", "running_norm_behind"]

aten = torch.ops.aten


def running_norm_behind(conv: Node) -> Node | None:
    """The batch-norm of running statistics that alone reads a convolution."""
    norm = only_user(conv)
    if norm is None or norm.target is not aten.batch_norm.default:
        return None
    values = arguments(norm)
    statistics = (values["running_mean"], values["running_var"])
    wanted = not values["training"] and None not in statistics and values["input"] is conv
    same_dtype = norm.meta["val"].dtype == conv.meta["val"].dtype
    return norm if wanted and same_dtype else None


def norm_before(graph: EditedGraph, branch: Node) -> Node | None:
    """The batch-norm whose output is this branch, where nothing else reads it."""
    if branch.target is not aten.batch_norm.default or len(branch.users) != 1:
        return None
    values = arguments(branch)
    x = values["input"]
    if x in graph.written or x.meta["val"].dtype != branch.meta["val"].dtype:
        return None
    statistics = [node for node in (values["running_mean"], values["running_var"]) if node is not None]
    if values["training"]:
        # a cumulative average's momentum is no number; a norm called twice is updated in order
        takes = isinstance(values["momentum"], float) and all(len(node.users) == 1 for node in statistics)
    else:
        takes = len(statistics) == 2
    return branch if takes else None


def affine(graph: EditedGraph, norm: Node) -> tuple[Node, Node, Node]:
    """What a batch-norm reads, and the scale and bias that it comes to."""
    values = arguments(norm)
    parameters = [values[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if values["training"]:
        both = graph.call(batch_affine, values["input"], *parameters, values["momentum"], values["eps"])
    else:
        both = graph.call(running_affine, *parameters, values["eps"])
    graph.report.batch_norms += 1
    scale, bias = [graph.call(operator.getitem, both, i) for i in (0, 1)]
    return values["input"], scale, bias


def folded(graph: EditedGraph, conv: Node, norm: Node, dtype: torch.dtype) -> tuple[Node, Node]:
    """The weight and bias of a convolution that does its batch-norm's work too."""
    of_conv, of_norm = arguments(conv), arguments(norm)
    names = ("weight", "bias", "running_mean", "running_var", "eps")
    gamma, beta, mean, var, eps = (of_norm[name] for name in names)
    graph.report.batch_norms += 1
    weight = graph.call(folded_weight, of_conv["weight"], gamma, var, eps, dtype)
    weight.meta["val"] = of_conv["weight"].meta["val"].to(dtype)
    return weight, graph.call(folded_bias, of_conv["bias"], gamma, beta, mean, var, eps, dtype)


def fold_constants(module: GraphModule, report: FusionReport) -> None:
    """Fold what batch-norms are left into the convolutions before them, and compute all folded weights.

    For a module whose parameters will not change: they become new parameters of `module`. The report counts
    the batch-norms.
    """
    graph = EditedGraph(module.graph, report)
    for conv in [node for node in module.graph.nodes if node.target in CONVOLUTIONS]:
        norm = running_norm_behind(conv)
        if norm is None or arguments(conv).get("transposed", False):
            continue
        with graph.before(conv):
            weight, bias = folded(graph, conv, norm, conv.meta["val"].dtype)
        conv.args = (conv.args[0], weight, bias, *conv.args[3:])
        graph.replace(norm, conv)
    for node in list(module.graph.nodes):
        constants = all(x.op == "get_attr" for x in node.all_input_nodes)  # no computed weight
        if node.target in (folded_weight, folded_bias, joined_bias, running_affine) and constants:
            _compute(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()


def _compute(module: GraphModule, node: Node) -> None:
    """Run a call of constants, and put its results in its place as parameters of the module.

    They are named by what they are made of: for frames of another size other places may be fused, in another order.
    """
    function: Any = node.target
    result = function(
        *(operator.attrgetter(str(x.target))(module) if isinstance(x, Node) else x for x in node.args)
    )
    # not the dtype: the copy may have been moved to another
    made_of = [x.target if isinstance(x, Node) else x for x in node.args if not isinstance(x, torch.dtype)]
    digest = hashlib.sha256(repr((function.__name__, made_of)).encode()).hexdigest()[:16]
    outputs: list[Node] = list(node.users) if isinstance(result, tuple) else [node]
    for output in outputs:
        index: Any = output.args[1]
        value = result[index] if isinstance(result, tuple) else result
        part = f"_{index}" if isinstance(result, tuple) else ""
        name = f"{function.__name__}{part}_{digest}"
        module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        with module.graph.inserting_before(output):
            constant = module.graph.get_attr(name)
        constant.meta["val"] = value
        output.replace_all_uses_with(constant)
        module.graph.erase_node(output)
