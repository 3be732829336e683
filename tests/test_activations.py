"""The table of activations: what one entry says of itself agrees, and no other file need know a name."""

import re
from pathlib import Path

import pytest
import torch

import tsm_triton
from tsm_triton import reference
from tsm_triton.activations import ACTIVATIONS, activate_, activation_backward
from tsm_triton.fusion.graphs import activation_name

PACKAGE = Path(tsm_triton.__file__).parent
NAMES = pytest.mark.parametrize("name", ACTIVATIONS)
# around every bend of the formulas
POINTS = torch.tensor([-9.0, -3.5, -1.0, -0.1, 0.2, 1.0, 2.9, 3.2, 5.9, 6.5, 9.0], dtype=torch.float64)


# as the papers and torch's manual write them: the reference takes its functions from the table
FORMULAS = {
    "none": lambda z: z,
    "relu": lambda z: z.clamp(min=0),
    "relu6": lambda z: z.clamp(0, 6),
    "hardswish": lambda z: z * (z + 3).clamp(0, 6) / 6,
    "silu": lambda z: z / (1 + (-z).exp()),
}


def test_the_functions_are_their_formulas():
    assert FORMULAS.keys() == ACTIVATIONS.keys()
    for name, formula in FORMULAS.items():
        torch.testing.assert_close(reference.activate(POINTS, name), formula(POINTS))


@NAMES
def test_the_derivative_is_that_of_the_function(name):
    z = POINTS.clone().requires_grad_()
    y = reference.activate(z, name)
    (expected,) = torch.autograd.grad(y.sum(), z)
    value = {"output": y, "input": z, None: None}[ACTIVATIONS[name].reads]
    torch.testing.assert_close(activation_backward(torch.ones_like(z), value, name), expected)
    given = POINTS.clone()
    assert activate_(given, name).data_ptr() == given.data_ptr()
    torch.testing.assert_close(given, y.detach())


@NAMES
def test_it_selects_where_it_commutes_with_a_rounding(name):
    z = torch.linspace(-9, 9, 5000, dtype=torch.float64)
    first, last = reference.activate(z.half(), name), reference.activate(z, name).half()
    assert torch.equal(first, last) == ACTIVATIONS[name].selects


class Act(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x):
        return reference.activate(x * 2, self.name)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "none"])
def test_a_graph_shows_it_by_its_name(name):
    graph = torch.export.export(Act(name), (POINTS,)).graph
    assert [
        found for node in graph.nodes if node.op == "call_function" and (found := activation_name(node))
    ] == [name]


def test_its_numbers_are_part_of_what_a_graph_must_show():
    class Other(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.hardtanh(x, 0, 5)

    graph = torch.export.export(Other(), (POINTS,)).graph
    assert not any(activation_name(node) for node in graph.nodes if node.op == "call_function")


def test_no_other_file_of_the_package_chooses_by_a_name():
    chooses = re.compile(rf"""(==|!=|in) \(?["']({"|".join(set(ACTIVATIONS) - {"none"})})["']""")
    found = {
        (path.relative_to(PACKAGE).as_posix(), line.strip())
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if chooses.search(line)
    }
    # the one that cuDNN has a kernel for
    assert {path for path, _ in found} == {"ops/convolution.py", "fusion/patterns/convolution.py"}, found
