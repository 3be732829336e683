"""Every op in torch's own operators: what exporters are given, and Inductor where its table says so."""

import pytest
import torch
from torch import Tensor, nn

from tsm_triton import ops
from tsm_triton.functional import clip_boundaries
from tsm_triton.ops.inductor import INDUCTOR_FORMS
from tsm_triton.testing import assert_close

SHIFT = (2, 1, 2, True)


def calls() -> dict[torch._ops.OpOverload, tuple]:
    """Each op and the arguments of a call, such that results are about one."""
    x, branch = torch.randn(2, 4, 8, 5, 3).unbind(0)
    scale, bias = torch.randn(2, 8).unbind(0)
    weight, identity, cache = torch.randn(6, 8) / 3, torch.randn(4, 6, 5, 3), torch.randn(4, 2, 5, 3)
    form = ([2, 1], [1, 1], [1, 1])
    return {
        ops.temporal_shift: (x, *SHIFT, 1),
        ops.temporal_shift_packed: (x, clip_boundaries([1, 3]), 1, 2, False, 1),
        ops.residual_shift: (branch, scale, bias, x, *SHIFT, "silu"),
        ops.residual_shift_backward: (x, branch, None, x, scale, bias, branch, *SHIFT, "silu"),
        ops.shift_conv1x1: (x, weight, bias[:6], identity, *SHIFT, "relu6"),
        ops.shift_step: (x, cache, 1),
        ops.shift_step_conv1x1: (x, cache, weight, None, identity, "hardswish"),
        ops.convolution: (
            x,
            weight[:, :4, None, None],
            None,
            identity[..., :3, :2],
            [2, 2],
            [0, 0],
            [1, 1],
            2,
            "relu",
        ),
        ops.depthwise_convolution: (x, torch.randn(8, 1, 3, 3), bias, *form, "relu"),
        ops.stem_convolution: (x, torch.randn(6, 8, 3, 3) / 9, bias[:6], *form[:2], "none"),
    }


OPS = pytest.mark.parametrize("op", calls(), ids=lambda op: op.name().removeprefix("tsm_triton::"))


@OPS
def test_an_exported_op_becomes_torchs_own_operators(op):
    arguments = calls()[op]
    places = [i for i, value in enumerate(arguments) if isinstance(value, Tensor)]

    class Call(nn.Module):
        def forward(self, *tensors):
            given = list(arguments)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            return op(*given)

    tensors = tuple(arguments[place] for place in places)
    program = torch.export.export(Call(), tensors).run_decompositions(ops.ATEN_FORMS)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called
    assert not any(name.startswith("tsm_triton") for name in called)
    for actual, expected in zip(outputs(program.module()(*tensors)), outputs(op(*arguments)), strict=True):
        assert_close(actual, expected)


def outputs(out) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def test_every_op_that_writes_nothing_has_a_form_in_torchs_own_operators():
    values = [getattr(ops, name) for name in ops.__all__]
    declared = {op for op in values if isinstance(op, torch._ops.OpOverload)}
    assert set(ops.ATEN_FORMS) == set(calls()) == declared - {ops.shift_step_into}


def test_inductors_table_chooses_between_forms_that_there_are():
    names = {op.name().removeprefix("tsm_triton::") for op in ops.ATEN_FORMS}
    assert names >= set(INDUCTOR_FORMS)
    assert all(set(chosen.values()) <= {"op", "aten", "kernel"} for chosen in INDUCTOR_FORMS.values())
    assert {chosen["cpu"] for chosen in INDUCTOR_FORMS.values()} <= {"op", "aten"}
    assert all(set(chosen) == {"cpu", "cuda"} for chosen in INDUCTOR_FORMS.values())


def test_a_traced_call_refuses_what_the_op_refuses():
    # on a GPU Inductor takes the form in torch's own operators, which checks nothing
    with pytest.raises(RuntimeError, match="divisible by num_segments=3"):
        torch.compile(lambda x: ops.temporal_shift(x, 3, 1, 1, False, 1), backend="eager")(torch.zeros(8, 8))
