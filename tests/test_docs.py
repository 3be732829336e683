"""docs/kernels.md and docs/deployment.md say what the code does."""

import re
from pathlib import Path

import pytest
import torch

from tsm_triton import _ops, ops
from tsm_triton.activations import ACTIVATIONS
from tsm_triton.testing.comparison import TOLERANCES

ROOT = Path(__file__).parent.parent
KERNELS = (ROOT / "docs" / "kernels.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    section = KERNELS.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ") for line in section.splitlines() if line.startswith("|") and "---" not in line]
    return [re.split(r" \| ", line) for line in lines]


def test_every_op_has_its_equation():
    told = [
        re.findall(r"`(\w+)`", cells[0])
        for heading in ("The shift", "With arithmetic")
        for cells in rows(heading)
    ]
    names = [name for found in told for name in found]
    registered = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(_ops.add_op_namespace_prefix(""))
    }
    assert sorted(names) == sorted(registered)
    assert len(registered) > 8


def test_every_kernel_is_named_beside_an_op():
    files = {path.name for path in (ROOT / "tsm_triton" / "kernels").glob("*.py")}
    helpers = {"__init__.py", "activations.py", "device.py", "launch.py", "layout.py", "triton_private.py"}
    assert set(re.findall(r"`(\w+\.py)`", KERNELS)) & files == files - helpers


def test_the_tolerances_are_those_that_the_tests_hold():
    header, *told = [cells for cells in rows("With arithmetic") if len(cells) == 3 and "`" not in cells[0]][
        1:
    ]
    assert header == ["dtype", "relative", "absolute"]
    expected = {str(dtype).removeprefix("torch."): [*values.values()] for dtype, values in TOLERANCES.items()}
    assert {name: [float(value) for value in values] for name, *values in told} == expected


def test_the_activations_are_all_there_are():
    sentence = re.search(r"`act` is one of (.*?);", KERNELS)
    assert re.findall(r"`(\w+)`", sentence[1]) == list(ACTIVATIONS)
    reads_output = {name for name, each in ACTIVATIONS.items() if each.reads == "output"}
    assert reads_output == {"relu", "relu6"}  # "of ReLU and ReLU6 reads y"


def test_the_ops_without_a_gradient_are_the_three_last():
    *_, third, second, first = [
        cells[0].strip("`") for cells in rows("With arithmetic") if cells[0].startswith("`")
    ]
    assert {first, second, third} == {"convolution", "stem_convolution", "depthwise_convolution"}
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 1, 1)
    with pytest.raises(RuntimeError, match="expected convolution in inference"):
        ops.convolution(x, weight, None, None, [1, 1], [0, 0], [1, 1], 1, "none")


def test_the_block_of_deployment_runs():
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)
    names = {}
    exec(block[1], names)
    assert names["logits"].shape == (16, 5)
    assert names["scores"].shape == (1, 5)
    assert names["fused"].report.fused
