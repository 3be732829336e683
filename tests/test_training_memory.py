"""A training step keeps of a patched model what it keeps of the model without shifts: no shifted copy of a map."""

import copy
import functools
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch._inductor.lowering  # what `select_decomp_table` needs and does not import
import torchvision
from networks import T
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock

from benchmarks.training import kept_bytes
from tsm_triton import packed_clips, patch, set_num_segments, shift_disabled, unpatch
from tsm_triton.functional import shift_conv1x1
from tsm_triton.fusion import recomputing
from tsm_triton.fusion.inductor import rewritten
from tsm_triton.ops import let_inductor_decompose
from tsm_triton.ops import recomputing as tagging
from tsm_triton.ops.inductor import INDUCTOR_FORMS
from tsm_triton.patching.hooks import shift_hooks
from tsm_triton.patching.shift_hook import ShiftHook
from tsm_triton.sites import ShiftSite

# of an unshifted model's bytes
AT_MOST = 1.02
# and what a shifted copy at each site brings it to
WITH_COPIES = {"resnet18": 1.13, "resnet50": 1.26, "regnety_002": 1.16, "mobilenetv2_100": 1.0}


class KeepingCopies(ShiftHook):
    """A shift that trains as it would without what this file is about."""

    def _shift_for(self, module: nn.Module, x: Tensor) -> Tensor:
        return self.shift(x)


def keeping_copies(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for hook in shift_hooks(model):
        hook.__class__ = KeepingCopies
    return model


def gradients(call: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    tensors = [x.clone().requires_grad_(), *model.parameters()]
    for tensor in tensors:
        tensor.grad = None
    call(tensors[0]).square().mean().backward()
    found = [tensor.grad for tensor in tensors]
    assert all(gradient is not None for gradient in found)
    return found


def require_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    assert all(map(torch.equal, actual, expected))


def frames(size: int = 64) -> Tensor:
    return torch.randn(2 * T, 3, size, size)


class Small(nn.Sequential):
    """Two blocks, whose shifted inputs are results of ReLUs that autograd keeps anyway."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 1), nn.ReLU(), BasicBlock(16, 16), BasicBlock(16, 16))


def small(**options: Any) -> nn.Module:
    return patch(Small(), T, example_input=torch.randn(T, 3, 8, 8), **options)


def sites(model: nn.Module) -> list[nn.Module]:
    return [
        m for m in model.modules() if any(isinstance(h, ShiftHook) for h in m._forward_pre_hooks.values())
    ]


def forward_hooks_in(model: nn.Module) -> list[Any]:
    return [key for m in model.modules() for key in (*m._forward_hooks, *m._forward_hooks_with_kwargs)]


@pytest.mark.parametrize("name", WITH_COPIES)
def test_no_shifted_copy_is_kept_and_gradients_are_the_very_same(name):
    model = timm.create_model(name, num_classes=5).train()
    patched = patch(copy.deepcopy(model), T)
    plain, x = keeping_copies(patched), frames()
    unshifted = kept_bytes(model, x)
    assert kept_bytes(patched, x) <= AT_MOST * unshifted
    assert kept_bytes(plain, x) == pytest.approx(WITH_COPIES[name] * unshifted, rel=0.01)
    require_equal(gradients(patched, patched, x), gradients(plain, plain, x))


@pytest.mark.parametrize("place", ["blockres", "block"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_torchvisions_resnet_keeps_none_in_either_place_and_layout(place, memory_format):
    model = torchvision.models.resnet18(num_classes=5).to(memory_format=memory_format)
    patched = patch(copy.deepcopy(model), T, place=place)
    plain, x = keeping_copies(patched), frames().contiguous(memory_format=memory_format)
    assert kept_bytes(patched, x) <= AT_MOST * kept_bytes(model, x)
    require_equal(gradients(patched, patched, x), gradients(plain, plain, x))


def test_a_linear_layer_keeps_a_view_of_what_it_was_given():
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.second = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x):
            x = self.norm(x).exp()
            return x + self.second(self.first(x).exp())

    model = nn.Sequential(Mixing(), Mixing())
    patched = patch(copy.deepcopy(model), T, example_input=torch.randn(T, 9, 16))
    plain, x = keeping_copies(patched), torch.randn(2 * T, 9, 16)
    unshifted = kept_bytes(model, x)
    assert kept_bytes(patched, x) <= AT_MOST * unshifted < kept_bytes(plain, x)
    require_equal(gradients(patched, patched, x), gradients(plain, plain, x))


def test_frozen_layers_keep_nothing_more():
    model = torchvision.models.resnet18(num_classes=5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("conv1", "bn1", "layer1", "layer2")))
    patched, x = patch(copy.deepcopy(model), T), frames()
    # the first trained layer's input needs no gradient; two convolutions of its block keep it
    assert kept_bytes(patched, x) <= AT_MOST * kept_bytes(model, x)


def test_what_the_model_is_told_before_the_backward_does_not_reach_it():
    model = small()
    plain, x = keeping_copies(model), torch.randn(2 * T, 3, 8, 8)
    for change in (
        lambda model: set_num_segments(model, 2),
        lambda model: shift_disabled(model).__enter__(),
        unpatch,
    ):
        changed = copy.deepcopy(model)
        out = changed(x).square().mean()
        change(changed)
        require_equal(
            list(torch.autograd.grad(out, list(changed.parameters()))), gradients(plain, plain, x)[1:]
        )
    with packed_clips(model, [3, 5]):
        out = model(x).square().mean()
    with packed_clips(plain, [3, 5]):
        expected = gradients(plain, plain, x)[1:]
    require_equal(list(torch.autograd.grad(out, list(model.parameters()))), expected)


class Written(nn.Module):
    """Its input is written between the site and the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        x = x * 1
        branch = self.second(self.first(x).relu())
        return x.add_(branch)


def test_an_input_that_is_written_afterwards_is_an_error_as_it_is_without_a_shift():
    model, x = Written(), torch.randn(2 * T, 16, 4, 4, requires_grad=True)
    patched = patch(copy.deepcopy(model), T, example_input=x[:T])
    assert sites(patched) == [patched.first]
    for network in (model, patched):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            network(x).sum().backward()


def test_a_graph_is_gone_through_twice_and_differentiated_twice():
    model = small().double()
    plain, x = keeping_copies(model), torch.randn(2 * T, 3, 4, 4, dtype=torch.float64)

    def twice(model: nn.Module) -> list[Tensor]:
        out = model(x).square().mean()
        parameters = list(model.parameters())
        first = torch.autograd.grad(out, parameters, retain_graph=True)
        second = torch.autograd.grad(out, parameters, create_graph=True)
        norm = sum(gradient.square().sum() for gradient in second)
        return [*first, *second, *torch.autograd.grad(norm, parameters)]

    require_equal(twice(model), twice(plain))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_a_block_and_around_a_site(reentrant):
    model = small()
    plain, x = keeping_copies(model), torch.randn(2 * T, 3, 8, 8)
    expected = gradients(plain, plain, x)
    require_equal(gradients(lambda x: checkpoint(model, x, use_reentrant=reentrant), model, x), expected)
    wrapped = copy.deepcopy(model)
    for site in sites(wrapped):
        inner = site.forward
        site.forward = lambda x, inner=inner: checkpoint(inner, x, use_reentrant=reentrant)  # type: ignore[method-assign]
    require_equal(gradients(wrapped, wrapped, x), expected)


def test_saved_tensors_that_others_have_hooks_on_are_theirs():
    model = small()
    plain, x = keeping_copies(model), torch.randn(2 * T, 3, 8, 8)
    with save_on_cpu():
        actual = gradients(model, model, x)
    require_equal(actual, gradients(plain, plain, x))


def test_hooks_of_users_see_what_they_saw():
    model = small()
    plain, x = keeping_copies(model), torch.randn(2 * T, 3, 8, 8)
    seen: list[list[Tensor]] = []
    for network in (model, plain):
        seen.append([])
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_full_backward_hook(
                    lambda _, given, got, to=seen[-1]: to.extend([*given, *got])
                )
                module.register_forward_hook(lambda _, args, out, to=seen[-1]: to.extend([*args, out]))
    require_equal(gradients(model, model, x), gradients(plain, plain, x))
    require_equal(*seen)


def test_a_module_that_is_called_twice_or_by_name_keeps_each_input():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            x = x + self.conv(input=x.sigmoid()).sigmoid()
            return x + self.conv(x.sigmoid()).sigmoid()

    model = Shared()
    patched = copy.deepcopy(model)
    patch(patched, T, sites=[ShiftSite("conv", patched.conv, 16, 1)], verify=False)
    plain, x = keeping_copies(patched), torch.randn(2 * T, 16, 8, 8)
    unshifted = kept_bytes(model, x.requires_grad_())
    assert kept_bytes(patched, x) <= AT_MOST * unshifted < kept_bytes(plain, x)
    require_equal(gradients(patched, patched, x.detach()), gradients(plain, plain, x.detach()))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_forward_that_raises_leaves_nothing_behind(error):
    model, x = small(), torch.randn(2 * T, 3, 8, 8)
    site = sites(model)[-1]
    given: list[Any] = []

    def fail(module, args):
        given.append(weakref.ref(args[0]))
        raise error

    handle = site.register_forward_pre_hook(fail)
    with pytest.raises(error):
        model(x)
    gc.collect()
    assert given[0]() is None
    handle.remove()
    plain = keeping_copies(model)
    require_equal(gradients(model, model, x), gradients(plain, plain, x))
    assert not forward_hooks_in(model)


def test_a_module_may_have_gone_backwards_itself():
    class Sensitive(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return y + torch.autograd.grad(y.sum(), x)[0]

    model = nn.Sequential(Sensitive(16, 16, 1))
    patch(model, T, sites=[ShiftSite("0", model[0], 16, 1)], verify=False)
    out = model(torch.randn(2 * T, 16, 4, 4, requires_grad=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.sum().backward()


def test_threads_train_one_model_side_by_side():
    model = small()
    plain, inputs = keeping_copies(model), [torch.randn(n * T, 3, 8, 8) for n in (1, 2, 3)]
    expected = [gradients(plain, plain, x) for x in inputs]
    wrong: list[int] = []

    def train(i: int) -> None:
        for _ in range(5):
            found = torch.autograd.grad(model(inputs[i]).square().mean(), list(model.parameters()))
            if not all(map(torch.equal, found, expected[i][1:])):
                wrong.append(i)

    threads = [threading.Thread(target=train, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_pickles_and_replaced_modules_keep_none_either_and_unpatch_takes_it_off():
    model, x = small(), torch.randn(2 * T, 3, 8, 8)
    count = len(sites(model))
    kept = kept_bytes(model, x)
    replaced = copy.deepcopy(model)
    for block in (replaced[2], replaced[3]):
        block.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), replaced):
        assert len(sites(other)) == count
        assert kept_bytes(other, x) == kept
        assert not sites(unpatch(other))
        assert not forward_hooks_in(other)


def test_no_tensor_tells_of_it_afterwards():
    model, seen = small(), []
    for site in sites(model):
        site.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    before = forward_hooks_in(model)
    out = model(torch.randn(2 * T, 3, 8, 8))
    assert seen
    assert not any(vars(shifted) for shifted in seen)
    assert forward_hooks_in(model) == before
    del out


def handed_over(model: nn.Module, x: Tensor, *, rewriting: bool, forms: str) -> int:
    """The bytes that a compiled forward hands to its backward, besides weights and inputs.

    Args:
        rewriting: as `backend="tsm_triton"` does it; Inductor else.
        forms: the device whose forms of our ops Inductor takes.
    """
    found: list[int] = []

    def noted(graph, _):
        (output,) = graph.graph.find_nodes(op="output")
        nodes = [n for n in output.args[0][1:] if isinstance(n, torch.fx.Node) and n.op != "placeholder"]
        values = [node.meta["val"] for node in nodes]
        found.append(sum(value.nbytes for value in values if isinstance(value, Tensor)))
        return make_boxed_func(graph.forward)

    def partitioned(joint, *args, **named):
        if rewriting:
            recomputing.shift_again(joint.graph)
        return min_cut_rematerialization_partition(joint, *args, **named)

    def backend(graph, inputs):
        if rewriting and (both := rewritten(graph)) is not None:
            graph = both[0]
        let_inductor_decompose()
        return aot_module_simplified(
            graph,
            inputs,
            fw_compiler=noted,
            bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
            decompositions=select_decomp_table(),
            partition_fn=partitioned,
        )

    torch.compiler.reset()
    with pytest.MonkeyPatch.context() as patched, torch._functorch.config.patch(enable_autograd_cache=False):
        for form in INDUCTOR_FORMS.values():
            patched.setitem(form, "cpu", form[forms])
        gradients(torch.compile(model, backend=backend, fullgraph=True), model, x)
    torch.compiler.reset()
    return found[0]


def hands_no_copy_over(model: nn.Module, patched: nn.Module, x: Tensor) -> int:
    without = handed_over(model, x, rewriting=False, forms="cpu")
    for forms in ("cpu", "cuda"):
        for rewriting in (False, True):
            assert handed_over(patched, x, rewriting=rewriting, forms=forms) <= AT_MOST * without
    return without


def test_a_compiled_step_hands_no_shifted_copy_to_its_backward(monkeypatch):
    model, x = Small().train(), torch.randn(2 * T, 3, 16, 16)
    patched = patch(copy.deepcopy(model), T, example_input=x[:T])
    without = hands_no_copy_over(model, patched, x)
    # and would hand it over if nothing were said
    monkeypatch.setattr(tagging, "_POLICY", "not a policy")
    monkeypatch.setattr(recomputing, "shift_again", lambda graph: None)
    for rewriting, forms in ((False, "cpu"), (True, "cpu"), (True, "cuda")):
        assert handed_over(patched, x, rewriting=rewriting, forms=forms) > 1.05 * without


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WITH_COPIES)
def test_whole_compiled_models_hand_none_over(name):
    model = timm.create_model(name, num_classes=5).train()
    hands_no_copy_over(model, patch(copy.deepcopy(model), T), frames())


@pytest.mark.parametrize(
    "backend", ["aot_eager", "tsm_triton", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_step_keeps_no_copy_and_trains_as_eager(backend):
    torch.compiler.reset()
    model, x = Small(), torch.randn(2 * T, 3, 16, 16)
    patched = patch(copy.deepcopy(model), T, example_input=x[:T])
    call, unshifted = torch.compile(patched, backend=backend), torch.compile(model, backend=backend)
    for actual, expected in zip(gradients(call, patched, x), gradients(patched, patched, x), strict=True):
        torch.testing.assert_close(actual, expected)
    gradients(unshifted, model, x)
    assert kept_bytes(call, x) <= AT_MOST * kept_bytes(unshifted, x)


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
def test_compiled_checkpointing_trains_as_eager(backend):
    class Checkpointed(Small):
        def forward(self, x):
            for block in self:
                x = checkpoint(block, x, use_reentrant=False) if isinstance(block, BasicBlock) else block(x)
            return x

    torch.compiler.reset()
    x = torch.randn(2 * T, 3, 8, 8)
    model = patch(Checkpointed(), T, example_input=x[:T])
    plain = keeping_copies(model)
    call = torch.compile(model, backend=backend, fullgraph=True)
    for actual, expected in zip(gradients(call, model, x), gradients(plain, plain, x), strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_fused_convolution_keeps_what_it_was_given():
    x, weight = torch.randn(2 * T, 16, 8, 8).requires_grad_(), torch.randn(8, 16, 1, 1).requires_grad_()
    out = shift_conv1x1(x, weight, T)
    node = out.grad_fn
    assert node is not None
    assert [saved.data for saved in node._raw_saved_tensors if saved.data is not None] == [x, weight]


def test_a_hook_behind_the_shift_may_write_where_autograd_does_not_see_it():
    def doubled(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].data.mul_(2)

    model = small()
    plain, x = keeping_copies(model), torch.randn(2 * T, 3, 8, 8)
    for network in (model, plain):
        sites(network)[0].register_forward_pre_hook(doubled)
    require_equal(gradients(model, model, x), gradients(plain, plain, x))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_windows_are_of_their_own_frames_where_a_backward_runs_them_again(reentrant):
    model = patch(timm.create_model("mobilevit_xxs", num_classes=5).eval().double(), 2)
    again = copy.deepcopy(model)
    blocks = [
        module for module in again.modules() if isinstance(module, timm.models.vision_transformer.Block)
    ]
    for block in blocks:
        inner = block.forward
        block.forward = lambda x, inner=inner: checkpoint(inner, x, use_reentrant=reentrant)  # type: ignore[method-assign]
    assert blocks

    def two(network: nn.Module, x: Tensor) -> Tensor:  # two numbers of frames before one backward
        with torch.no_grad():
            network(x[:6])
        return torch.cat([network(x), network(x[:4])])

    x = torch.randn(8, 3, 64, 64, dtype=torch.double)
    for _ in range(2):
        found = gradients(functools.partial(two, again), again, x)
        for one, other in zip(found, gradients(functools.partial(two, model), model, x), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # compiled autograd asks every tensor
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_backward_that_is_compiled_itself_shifts_again(backend):
    from torch._dynamo import compiled_autograd

    model, x = small(), torch.randn(2 * T, 3, 8, 8)
    torch.compiler.reset()
    for num_segments in (T, T // 2):
        set_num_segments(model, num_segments)
        expected = torch.autograd.grad(model(x).square().sum(), [*model.parameters()])
        model.zero_grad()
        with compiled_autograd._enable(torch.compile(backend=backend)):
            model(x).square().sum().backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # compiled autograd asks every tensor
def test_a_step_whose_backward_is_compiled_too_needs_no_patch():
    model = timm.create_model("test_resnet", num_classes=5)
    torch.compiler.reset()

    def step(x):
        model(x).square().sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="eager")(torch.randn(4, 3, 32, 32))
    assert all(parameter.grad is not None for parameter in model.parameters())
