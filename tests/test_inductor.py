"""`torch.compile(model, backend="tsm_triton")` against eager: outputs, gradients and running statistics."""

import copy
import logging
from importlib.metadata import entry_points

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch._inductor import metrics
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

import tsm_triton
from tsm_triton import torch_private
from tsm_triton.fusion import inductor
from tsm_triton.ops import residual_shift, shift_conv1x1

T = 4
SIZE = (3, 32, 32)
# fp64, so that only wrong arithmetic differs; gradients are compared with the largest of all
TOLERANCE = 1e-10
# compiled anew, so that what was generated can be counted
UNCACHED = {"fx_graph_cache": False}

# how many places are fused in training and in inference
MODELS = {"timm test_resnet": (3, 5), "torchvision mobilenet_v2": (5, 26)}
NARROW = {"torchvision mobilenet_v2": {"width_mult": 0.25}}
# the same of whole networks, as users have them
WHOLE_MODELS = {
    "timm resnet18": (7, 7),
    "timm resnet50": (15, 32),
    "timm resnet101": (17, 65),
    "timm resnet50d": (15, 32),
    "timm seresnet50": (15, 17),
    "timm resnext50_32x4d": (15, 32),
    "timm regnety_002": (12, 26),
    "timm mobilenetv2_100": (5, 25),
    "timm mobilenetv3_small_050": (4, 17),
    "timm efficientnet_b0": (4, 23),
    "torchvision resnet18": (7, 7),
    "torchvision resnet50": (15, 32),
    "torchvision resnet101": (17, 65),
    "torchvision resnext50_32x4d": (15, 32),
    "torchvision regnet_y_400mf": (15, 32),
    "torchvision mobilenet_v2": (5, 25),
    "torchvision mobilenet_v3_small": (2, 16),
    "torchvision efficientnet_b0": (4, 23),
}


def create(name: str, **options) -> nn.Module:
    library, name = name.split()
    torch.manual_seed(0)
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    model = make(name, num_classes=5, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    return tsm_triton.patch(model, T, verify=False, example_input=torch.empty(T, *SIZE)).double()


class Rewriting:
    """The backend with eager ATen calls in place of Inductor's code, which takes minutes to compile."""

    def __init__(self) -> None:
        self.reports: list[inductor.FusionReport | None] = []

    def __call__(self, module, example_inputs):
        found = inductor.rewritten(module)
        module, report = (module, None) if found is None else found
        self.reports.append(report)
        return torch._dynamo.lookup_backend("aot_eager")(module, example_inputs)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


def frames(clips: int) -> torch.Tensor:
    x = torch.randn(clips * T, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(clips))
    return x.contiguous(memory_format=torch.channels_last)


def step(model: nn.Module, call, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, the gradients of all parameters and of the input, and the buffers after one step."""
    x = x.clone().requires_grad_()
    out = call(x)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])
    return [out, torch.cat([gradient.flatten() for gradient in gradients]), *model.buffers()]


def close(actual, expected, tolerance=TOLERANCE) -> None:
    for one, other in zip(actual, expected, strict=True):
        scale = max(other.abs().max().item(), 1e-3)
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", MODELS)
def test_trains_and_infers_as_eager_does(name):
    assert trained_and_inferred(create(name, **NARROW.get(name, {}))) == MODELS[name]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_whole_models_train_and_infer_as_eager_does(name):
    assert trained_and_inferred(create(name)) == WHOLE_MODELS[name]


def trained_and_inferred(model: nn.Module) -> tuple[int, ...]:
    """Compare two training steps and one inference; how many places were fused in each graph."""
    twin, backend = copy.deepcopy(model), Rewriting()
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    for _ in range(2):  # the second step sees the first one's running statistics
        close(step(twin, compiled, frames(2)), step(model, model, frames(2)))
    model.eval()
    twin.eval()
    with torch.no_grad():
        close([compiled(frames(2))], [model(frames(2))])
    reports = [report for report in backend.reports if report is not None]
    assert {entry.kind for entry in reports[0].fused} <= {"residual + shift"}
    return tuple(len(report.fused) for report in reports)


class Blocks(nn.Module):
    """Two residual blocks, as small as they can be: a basic one, and one that opens with a 1x1 convolution."""

    def __init__(self, **norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, **norm)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        branch = self.bn1(self.conv1(tsm_triton.temporal_shift(x, T)))
        branch += x
        y = F.relu(branch, inplace=True)
        return F.relu(self.bn2(self.conv2(tsm_triton.temporal_shift(y, T))) + y)


def maps(clips: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(clips)
    x = torch.randn(clips * T, 8, 5, 5, dtype=dtype, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def test_torch_compile_knows_it_by_name_and_inductor_runs_it(caplog):
    assert "tsm_triton" in {entry.name for entry in entry_points(group="torch_dynamo_backends")}
    model = Blocks().double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="tsm_triton", fullgraph=True)
    with caplog.at_level(logging.INFO, logger="tsm_triton"):
        close(step(twin, compiled, maps(2)), step(model, model, maps(2)))
        model.eval()
        twin.eval()
        with torch.no_grad():
            close([compiled(maps(2))], [model(maps(2))])
    reports = [record.message for record in caplog.records if record.name == inductor.__name__]
    assert [report.splitlines()[0] for report in reports] == [
        "1 fused, 1 left, 1 batch-norms folded",
        "1 fused, 2 left, 1 batch-norms folded",
    ]
    assert "residual + shift  relu" in reports[0]
    assert "shift + conv1x1 + residual  relu" in reports[1]


@pytest.mark.parametrize(
    ("norm", "count"),
    [(dict(affine=False), 1), (dict(track_running_stats=False), 1), (dict(momentum=0.3, eps=1e-2), 1)],
)
def test_every_batch_norm_keeps_its_statistics(norm, count):
    model = Blocks(**norm).double()
    twin, backend = copy.deepcopy(model), Rewriting()
    compiled = torch.compile(twin, backend=backend)
    for clips in (2, 3, 5):
        close(step(twin, compiled, maps(clips)), step(model, model, maps(clips)))
    # once for the first number of clips, once for all others
    assert [report.batch_norms for report in backend.reports if report is not None] == [count] * 2


def test_frozen_batch_norms_are_trained_through():
    model = Blocks().double().eval()
    twin, backend = copy.deepcopy(model), Rewriting()
    close(step(twin, torch.compile(twin, backend=backend), maps(2)), step(model, model, maps(2)))
    assert [entry.kind for entry in backend.reports[0].fused] == ["residual + shift"]


@pytest.mark.parametrize("training", [True, False])
def test_autocast_casts_what_it_would(training):
    model = Blocks().train(training)
    twin, backend = copy.deepcopy(model), Rewriting()
    compiled = torch.compile(twin, backend=backend)
    x = maps(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        out, expected = compiled(x), model(x)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=4e-2)
    torch.testing.assert_close(twin.bn1.running_mean, model.bn1.running_mean, rtol=2e-2, atol=2e-2)


def test_weights_that_change_are_read_anew():
    model, backend = Blocks().double().eval(), Rewriting()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(maps(2))
        for parameter in model.parameters():
            parameter.mul_(1.5)
        model.bn2.running_mean.add_(1)
        close([compiled(maps(2))], [model(maps(2))])
    assert len(backend.reports) == 1


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: F.relu(x), id="no shift"),
        pytest.param(lambda x: tsm_triton.temporal_shift(x, T).exp(), id="nothing to fuse"),
        pytest.param(lambda x: inside_autocast(x), id="a region of autocast"),
    ],
)
def test_what_it_does_not_recognise_is_left_to_inductor(function):
    backend = Rewriting()
    x = maps(2)
    torch.testing.assert_close(torch.compile(function, backend=backend)(x), function(x))
    assert backend.reports == [None]


class Behind(nn.Module):
    """A shifted 1x1 convolution, and what a user's model does with its output."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv1, self.conv2, self.function = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), function

    def forward(self, x):
        y = F.relu(self.conv1(tsm_triton.temporal_shift(x, T)))
        y = F.relu(self.conv2(self.function(y)) + y)
        return tsm_triton.temporal_shift(y, T)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda y: y * torch.tensor(0.5), id="a constant"),
        pytest.param(lambda y: y * torch.as_tensor([1.0, 2, 3, 4, 5]), id="constants"),
        pytest.param(lambda y: y.view(len(y), -1).view(y.shape), id="a view"),
        pytest.param(lambda y: torch.as_strided(y, (len(y), 200), (200, 1)).view(y.shape), id="strides"),
    ],
)
def test_what_stands_behind_runs_as_in_eager(function, training):
    model, backend = Behind(function).double(), Rewriting()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = maps(2).contiguous()
    if training:
        close(step(model, compiled, x), step(model, model, x))
    else:
        with torch.no_grad():
            close([compiled(x)], [model(x)])
    assert [len(report.fused) for report in backend.reports] == [1]


def inside_autocast(x):
    with torch.autocast("cpu", torch.bfloat16):
        y = F.relu(x.exp() + x)
        return tsm_triton.temporal_shift(y, T) + y


def test_the_graph_it_is_given_stays_as_it_was():
    graphs = []

    def backend(module, example_inputs):
        before = module.print_readable(print_output=False)
        found = inductor.rewritten(module)
        assert found is not None
        assert module.print_readable(print_output=False) == before
        graphs.append(found[0])
        return module

    torch.compile(Blocks().eval(), backend=backend)(maps(2, torch.float32))
    targets = {node.target for node in graphs[0].graph.nodes}
    assert residual_shift in targets
    assert shift_conv1x1 not in targets  # gradients are wanted


@pytest.mark.parametrize(
    ("memory_format", "gradients", "rewritten"),
    [
        (torch.contiguous_format, False, False),
        (torch.channels_last, False, True),
        (torch.contiguous_format, True, True),
    ],
)
def test_inductor_gets_the_graph_as_it_was_where_it_would_make_the_same_code_of_it(
    monkeypatch, caplog, memory_format, gradients, rewritten
):
    given, compiled = [], []

    def compile_fx(module, example_inputs, config_patches):
        compiled.append((module, config_patches))
        return module.forward

    def backend(module, example_inputs):
        given.append(module)
        return inductor.compile_graph(module, example_inputs)

    monkeypatch.setattr(torch_private, "compile_fx", compile_fx, raising=False)
    model, x = Blocks().double().eval(), maps(2).contiguous(memory_format=memory_format)
    with torch.set_grad_enabled(gradients), caplog.at_level(logging.INFO, logger="tsm_triton"):
        close([torch.compile(model, backend=backend)(x)], [model(x)])
    ((module, options),) = compiled
    assert (module is not given[0]) == rewritten
    assert (options is not None) == rewritten
    assert len(caplog.records) == rewritten  # a report of what is not fused would not be true


def test_inductor_feeds_the_shift_what_its_convolutions_make_and_keeps_what_strides_mean():
    conv = nn.Conv2d(8, 8, 3, padding=1).double()
    shifts = {"shifted": lambda x: tsm_triton.temporal_shift(x, T), "plain": torch.clone}
    kernels, x = {}, maps(2).contiguous()

    def network(x, shift):
        return conv(shift(conv(x).relu())).relu()

    with torch.no_grad():
        for name, shift in shifts.items():
            torch.compiler.reset()
            metrics.reset()
            compiled = torch.compile(lambda x, shift=shift: network(x, shift), options=UNCACHED)
            close([compiled(x)], [network(x, shift)])
            kernels[name] = metrics.generated_kernel_count
        # no copy to NCHW and back around the shift
        assert kernels["shifted"] <= kernels["plain"]

        def strided(x):
            y = shifts["shifted"](conv(x).relu())
            return y, y.view(len(y), -1).cumsum(1), torch.as_strided(y, (len(y), 100), (200, 2)) + 1

        got, expected = torch.compile(strided, options=UNCACHED)(x), strided(x)
        close(got, expected)
        assert [one.stride() for one in got] == [one.stride() for one in expected]
