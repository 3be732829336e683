"""A graph while it is rewritten: what holds of its values, and the ways in which it is changed."""

import contextlib
from typing import Any

import torch
from torch.fx import Graph, Node

from .graphs import make_functional
from .layouts import channels_last_maps
from .report import FusionReport

__all__ = ["EditedGraph"]

aten = torch.ops.aten


class EditedGraph:
    """A graph on its way, its in-place calls undone where that can be.

    Attributes:
        graph: itself.
        report: of what was done.
        training: whether gradients are wanted of it.
        written: the values that hold one thing here and another there: they may be read from no other place than the
            graph's own.
        channels_last: the maps that lie in channels_last.
    """

    def __init__(self, graph: Graph, report: FusionReport, *, training: bool = False) -> None:
        self.graph = graph
        self.report = report
        self.training = training
        self.written = make_functional(graph)
        self.channels_last = channels_last_maps(graph)

    def before(self, node: Node) -> contextlib.AbstractContextManager[Any]:
        """Where what is called inside of it stands."""
        return self.graph.inserting_before(node)

    def call(self, function: Any, *arguments: Any) -> Node:
        return self.graph.call_function(function, arguments)

    def cast(self, value: Node | None, dtype: torch.dtype) -> Node | None:
        if value is None or value.meta["val"].dtype == dtype:
            return value
        return self.call(aten.to.dtype, value, dtype)

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
