"""A compiled model runs the shifts that it has, in every order of patch, compile, copy, load and run."""

import copy
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from networks import Block, T, visible
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from tsm_triton import patch, set_num_segments, shift_disabled, unpatch

MODELS = {
    "cnn": lambda: timm.create_model("test_resnet", num_classes=5),
    "transformer": lambda: timm.create_model("test_vit", num_classes=5, img_size=64, depth=2),
}
# each kernel that Inductor writes for a CPU takes its compiler some seconds
SMALL = {
    "cnn": lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 4), Block(1), Block(2)),
    "transformer": lambda: timm.create_model("test_vit", num_classes=5, img_size=64, depth=1),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.compiler.reset()
    return visible(MODELS[request.param]())


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(2 * T, 3, 64, 64)


def runs_as_eager(compiled, model: nn.Module, frames: torch.Tensor) -> None:
    """A few times: Dynamo looks at fewer guards where earlier calls passed them."""
    with torch.no_grad():
        expected = model(frames)
        for _ in range(4):
            torch.testing.assert_close(compiled(frames), expected, rtol=1e-3, atol=1e-3)


def loaded(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("backend", ["eager", "inductor", "tsm_triton"])
@pytest.mark.parametrize("build", SMALL.values(), ids=SMALL)
def test_a_patched_copy_does_not_run_the_graph_of_the_unpatched_model(build, frames, backend):
    torch.compiler.reset()
    model = visible(build())
    patched = patch(copy.deepcopy(model), T)
    runs_as_eager(torch.compile(model, backend=backend), model, frames)
    runs_as_eager(torch.compile(patched, backend=backend), patched, frames)
    runs_as_eager(torch.compile(model, backend=backend), model, frames)


@pytest.mark.parametrize("copied", [copy.deepcopy, loaded])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_copy_of_a_patched_model_is_compiled_as_it_is(model, frames, copied, fullgraph):
    patched = patch(copy.deepcopy(model), T)
    runs_as_eager(torch.compile(model, backend="eager", fullgraph=fullgraph), model, frames)
    twin = copied(patched)
    runs_as_eager(torch.compile(twin, backend="eager", fullgraph=fullgraph), twin, frames)
    unpatch(twin)
    runs_as_eager(torch.compile(twin, backend="eager", fullgraph=fullgraph), model, frames)


def test_the_call_compiled_in_place_is_that_of_the_model(model, frames):
    patched = patch(copy.deepcopy(model), T)
    model.compile(backend="eager")
    eager = copy.deepcopy(patched)
    patched.compile(backend="eager")
    with torch.no_grad():
        model(frames)
    runs_as_eager(patched, eager, frames)


def test_patching_after_the_compiled_call_is_seen(model, frames):
    compiled = torch.compile(lambda x: model(x), backend="eager")
    for _ in range(3):
        runs_as_eager(compiled, model, frames)
        patch(model, T)
        runs_as_eager(compiled, model, frames)
        with shift_disabled(model):
            runs_as_eager(compiled, model, frames)
        unpatch(model)
    runs_as_eager(compiled, model, frames)


def test_models_patched_at_other_places_do_not_share_a_graph(model, frames):
    last = "layer4" if hasattr(model, "layer4") else "blocks"
    part = patch(copy.deepcopy(model), T, filter_fn=lambda _, name: name.startswith(last) and "0" in name)
    whole = patch(copy.deepcopy(model), T)
    block = patch(copy.deepcopy(model), T, place="block")
    causal = patch(copy.deepcopy(model), T, direction="causal")
    for each in (part, whole, block, model, causal, part, model):
        runs_as_eager(torch.compile(each, backend="eager", fullgraph=True), each, frames)


def test_training_steps_take_the_shift_that_the_model_has(model, frames):
    model.train()
    patched = patch(copy.deepcopy(model), T)
    for each in (model, patched):
        twin = copy.deepcopy(each)
        torch.compile(twin, backend="aot_eager")(frames).square().sum().backward()
        each(frames).square().sum().backward()
        for got, expected in zip(twin.parameters(), each.parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-2)


def test_a_function_over_two_models_runs_each_with_its_shifts(model, frames):
    patched = patch(copy.deepcopy(model), T)

    @torch.compile(backend="eager")
    def run(network, x):
        return network(x)

    for each in (model, patched, model, patched):
        runs_as_eager(lambda x, each=each: run(each, x), each, frames)


@pytest.mark.parametrize("imported", ["first", "after the compiler", "by a pickle"])
def test_the_order_of_imports_does_not_matter(tmp_path, imported):
    torch.manual_seed(0)
    model = visible(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5))
    torch.save((model, patch(copy.deepcopy(model), T)), tmp_path / "models.pt")
    script = f"""
import torch
from torchvision.models.resnet import BasicBlock, ResNet
{"import tsm_triton" if imported == "first" else ""}
unpatched = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).eval()
x = torch.randn({T}, 3, 64, 64)
with torch.no_grad():
    torch.compile(unpatched, backend="eager")(x)
{"import tsm_triton" if imported == "after the compiler" else ""}
model, patched = torch.load({str(tmp_path / "models.pt")!r}, weights_only=False)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(patched, backend="eager")(x), patched(x))
    assert not torch.allclose(patched(x), model(x))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_clips_of_many_lengths_share_a_graph(model):
    graphs = []

    def counting(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    patched = patch(model, 1)
    compiled = torch.compile(patched, backend=counting, fullgraph=True)
    for num_segments in range(1, 13):
        set_num_segments(patched, num_segments)
        frames = torch.randn(2 * num_segments, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(compiled(frames), patched(frames))
    assert len(graphs) <= 4  # of one frame, of two lengths, of any
