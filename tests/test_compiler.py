"""The rewriting of a graph on the fused ops: what is recognised, what stays and why, on graphs of a few calls."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import tsm_triton
from tsm_triton.fusion.choice import is_faster, takes_norm
from tsm_triton.fusion.folding import fold_constants
from tsm_triton.fusion.report import FusionReport
from tsm_triton.fusion.rewriting import rewrite
from tsm_triton.ops import temporal_shift

T = 4
ABSORBED, SUMMED, BOTH, ALONE = "shift + conv1x1", "conv1x1 + residual", "residual + shift", "conv1x1"


class Tail(nn.Module):
    """`[shift ->] conv -> what follows`, as small as a graph can be."""

    def __init__(self, forward, **conv) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, **{"kernel_size": 1, **conv})
        self.norm = nn.BatchNorm2d(16)
        self.body = forward

    def forward(self, x):
        return self.body(self, x, tsm_triton.temporal_shift(x, T))


def rewritten(module: nn.Module) -> tuple[FusionReport, nn.Module]:
    network = torch.export.export(
        module.eval(), (torch.randn(2 * T, 16, 6, 6).contiguous(memory_format=torch.channels_last),)
    ).module()
    report = rewrite(network.graph)
    fold_constants(network, report)
    network.recompile()
    return report, network


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Tail(lambda m, x, s: m.conv(s), kernel_size=3), "conv is 3x3, input is x"),
        (Tail(lambda m, x, s: m.conv(s), stride=2), "stride 2, input is x"),
        (Tail(lambda m, x, s: m.conv(s), padding=1), "padding 1, input is x"),
        (Tail(lambda m, x, s: m.conv(s), groups=2), "groups 2, input is x"),
        (Tail(lambda m, x, s: m.conv(s) + s.mean()), "shift has 2 users, input is x"),
        (Tail(lambda m, x, s: m.norm(s)), "batch_norm follows, input is x"),
        (
            Tail(
                lambda m, x, s: m.conv(tsm_triton.temporal_shift(nn.functional.gelu(x + x.exp()), T)),
                kernel_size=3,
            ),
            "conv is 3x3, activation gelu",
        ),
        (
            Tail(lambda m, x, s: m.conv(tsm_triton.temporal_shift(x + x[:1], T)), kernel_size=3),
            "conv is 3x3, sum of different shapes",
        ),
        (
            Tail(lambda m, x, s: m.conv(tsm_triton.temporal_shift(x, T, channel_dim=-1, shift_div=3))),
            "channels on axis -1, channels on axis -1",
        ),
        (Tail(lambda m, x, s: m.conv(s.contiguous())), "contiguous follows, input is x"),
        (
            Tail(lambda m, x, s: m.conv(tsm_triton.temporal_shift(x.contiguous() + 0, T))),
            "the graph is not channels_last here",
        ),
        (Tail(lambda m, x, s: m.conv(x.contiguous()) + x.exp()), "the graph is not channels_last here"),
    ],
)
def test_what_stays_has_its_reason(module, reason):
    report, network = rewritten(module)
    assert reason in [entry.reason for entry in report.left]
    assert not report.fused
    x = torch.randn(2 * T, 16, 6, 6)
    torch.testing.assert_close(network(x), module(x))


ACTIVATIONS = {
    "relu": nn.functional.relu,
    "relu6": nn.functional.relu6,
    "hardswish": nn.functional.hardswish,
    "silu": nn.functional.silu,
    "none": nn.functional.gelu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("order", ["branch first", "identity first"])
def test_activations_join_the_product_and_others_stay_outside(name, order):
    act = ACTIVATIONS[name]

    def shifted_product_and_sum(m, x, s):
        branch = m.norm(m.conv(s))
        return act(branch + x if order == "branch first" else x + branch)

    module = Tail(shifted_product_and_sum, bias=False)
    report, network = rewritten(visible_norm(module))
    assert [(entry.kind, entry.reason) for entry in report.fused] == [("shift + conv1x1 + residual", name)]
    x = torch.randn(2 * T, 16, 6, 6)
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_sum_and_its_shift_are_one_op(name):
    act = ACTIVATIONS[name]

    def block(m, x, s):
        y = act(x.exp() + x)
        return m.norm(m.conv(tsm_triton.temporal_shift(y, T))) + y

    module = Tail(block, kernel_size=3, padding=1)
    report, network = rewritten(visible_norm(module))
    assert [entry.kind for entry in report.fused] == ([BOTH] if name != "none" else [])
    x = torch.randn(2 * T, 16, 6, 6)
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)


def visible_norm(module: Tail) -> Tail:
    nn.init.uniform_(module.norm.weight, 0.5, 1.5)
    for values in (module.norm.bias, module.norm.running_mean):
        nn.init.normal_(values)  # type: ignore[arg-type]
    nn.init.uniform_(module.norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return module


def test_a_convolution_with_two_readers_keeps_its_batch_norm():
    def two_readers(m, x, s):
        y = m.conv(s)
        return m.norm(y) + y

    report, network = rewritten(visible_norm(module := Tail(two_readers)))
    assert report.batch_norms == 0
    x = torch.randn(2 * T, 16, 6, 6)
    torch.testing.assert_close(network(x), module(x))


def test_weights_used_twice_are_folded_apart():
    def twice(m, x, s):
        return m.norm(m.conv(s)) + m.conv(x.exp())

    report, network = rewritten(visible_norm(module := Tail(twice)))
    assert report.batch_norms == 1
    x = torch.randn(2 * T, 16, 6, 6)
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)


def test_the_rule_decides_place_by_place(monkeypatch):
    asked = []

    def rule(kind, x):
        asked.append((kind, tuple(x.shape[1:])))
        return False

    monkeypatch.setattr("tsm_triton.fusion.choice.is_faster", rule)
    report, network = rewritten(Tail(lambda m, x, s: m.conv(s)))
    assert asked == [(ABSORBED, (16, 6, 6))]
    assert [entry.reason for entry in report.left] == ["the fused form is slower here"]
    assert any(n.target is temporal_shift for n in network.graph.nodes)  # type: ignore[union-attr]


def fake(*shape, device="cuda", layout=torch.channels_last):
    with FakeTensorMode():
        return torch.empty(shape, device=device, memory_format=layout)


def test_the_rule_follows_the_bytes():
    # which layout a map has is no question of the rule: the rewriting knows, on a GPU not from strides
    for kind in (ABSORBED, SUMMED, ALONE):
        assert is_faster(kind, fake(8, 64, 56, 56))
        assert is_faster(kind, fake(8, 64, 56, 56, device="cpu", layout=torch.contiguous_format))
    assert is_faster(BOTH, fake(8, 64, 56, 56, layout=torch.contiguous_format))
    assert not is_faster(ALONE, fake(8, 64, 1, 1))
    assert takes_norm(fake(8, 64, 56, 56))
    assert not takes_norm(fake(8, 64, 56, 56, device="cpu"))


IN_PLACE = {
    # the two things a block does in place
    "sum and activation": (lambda m, x, s: m.conv(s).add_(x).relu_(), "shift + conv1x1 + residual"),
    "activation": (lambda m, x, s: m.conv(s).relu_(), ABSORBED),
    # from here on moving a read would change the result
    "shifted, by a view": (lambda m, x, s: later_shift(m, x.exp()), None),
    "branch, read before": (lambda m, x, s: read_before(m.conv(s), x), None),
}


def later_shift(m, y):
    shifted = tsm_triton.temporal_shift(y, T)
    y.movedim(1, 3).add_(1)
    return m.conv(shifted) + y


def read_before(y, x):
    pixels = y.movedim(1, 3)
    y.add_(x)
    return y.relu() + pixels.movedim(3, 1)


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_written_in_place_is_never_read_from_elsewhere(name):
    forward, kind = IN_PLACE[name]
    module = Tail(forward)
    report, network = rewritten(module)
    x = torch.randn(2 * T, 16, 6, 6)
    torch.testing.assert_close(network(x.clone()), module(x.clone()), rtol=1e-5, atol=1e-5)
    if kind is not None:
        assert [entry.kind for entry in report.fused] == [kind]


def test_the_report_prints_as_a_table():
    report, _ = rewritten(Tail(lambda m, x, s: m.conv(s) + m.conv(x + x.exp()), kernel_size=1))
    assert str(report).splitlines() == [
        "1 fused, 1 left, 0 batch-norms folded",
        "fused  conv  shift + conv1x1 + residual  none",
        "left   add   residual                    no 1x1 convolution ends in x + exp",
    ]
