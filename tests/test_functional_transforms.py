"""torch.func's transforms over every op and over a patched model, against the same written in torch's own operators."""

import itertools

import pytest
import timm
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import tsm_triton
from tsm_triton import ops, reference
from tsm_triton.activations import ACTIVATIONS
from tsm_triton.functional import clip_boundaries
from tsm_triton.testing import assert_same_bits

from .networks import visible

SHIFT = (2, 1, 2, False)
BOUNDARIES = clip_boundaries([1, 3])


def packed(x, boundaries, n_first, n_second, reverse, channel_dim):
    """Each clip alone."""
    starts = boundaries.nonzero().flatten().tolist()
    clips = [x[start:end] for start, end in itertools.pairwise(starts)]
    return torch.cat(
        [reference.temporal_shift(clip, len(clip), n_first, n_second, reverse, channel_dim) for clip in clips]
    )


def step(x, cache, channel_dim):
    now, rest = x.split(
        [cache.shape[channel_dim], x.shape[channel_dim] - cache.shape[channel_dim]], channel_dim
    )
    return torch.cat([cache, rest], channel_dim), now


def step_conv1x1(x, cache, weight, bias, identity, activation):
    y, kept = step(x, cache, 1)
    return reference.shift_conv1x1(y, weight, bias, identity, 1, 0, 0, False, activation), kept


MAPS, NEXT = (4, 5, 2, 1), (4, 3, 2, 1)
# name -> the op, its reference, the shapes of its tensors (floats; None where there is none), the other arguments
OPS = {
    "temporal_shift": (ops.temporal_shift, reference.temporal_shift, [MAPS], (*SHIFT, 1)),
    "of tokens": (ops.temporal_shift, reference.temporal_shift, [(4, 2, 5)], (*SHIFT, -1)),
    "packed": (
        lambda x, *rest: ops.temporal_shift_packed(x, BOUNDARIES, *rest),
        lambda x, *rest: packed(x, BOUNDARIES, *rest),
        [MAPS],
        (1, 2, False, 1),
    ),
    "shift_step": (ops.shift_step, step, [MAPS, (4, 2, 2, 1)], (1,)),
    "residual, no norm": (
        lambda branch, identity, *rest: ops.residual_shift(branch, None, None, identity, *rest),
        lambda branch, identity, *rest: reference.residual_shift(branch, None, None, identity, *rest),
        [MAPS, MAPS],
        (*SHIFT, "relu"),
    ),
    "shift_conv1x1, no bias": (
        lambda x, weight, *rest: ops.shift_conv1x1(x, weight, None, None, *rest),
        lambda x, weight, *rest: reference.shift_conv1x1(x, weight, None, None, *rest),
        [MAPS, (3, 5, 1, 1)],
        (*SHIFT, "none"),
    ),
    "shift_step_conv1x1": (
        ops.shift_step_conv1x1,
        step_conv1x1,
        [MAPS, (4, 2, 2, 1), (3, 5), (3,), NEXT],
        ("silu",),
    ),
}
for activation in ACTIVATIONS:
    OPS[f"residual, {activation}"] = (
        ops.residual_shift,
        reference.residual_shift,
        [MAPS, (5,), (5,), MAPS],
        (*SHIFT, activation),
    )
    OPS[f"shift_conv1x1, {activation}"] = (
        ops.shift_conv1x1,
        reference.shift_conv1x1,
        [MAPS, (3, 5), (3,), NEXT],
        (*SHIFT, activation),
    )


@pytest.fixture(params=OPS)
def case(request):
    """The op and its reference, as functions of tensors alone, and those tensors."""
    op, expected, shapes, rest = OPS[request.param]
    tensors = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return lambda *xs: op(*xs, *rest), lambda *xs: expected(*xs, *rest), tensors


def every(tensors):
    return tuple(range(len(tensors)))


def scalar(call):
    """A loss that weighs each element of each output by another number, and has a curvature of its own."""

    def loss(*tensors):
        out = call(*tensors)
        outs = (out,) if isinstance(out, torch.Tensor) else out
        return sum(
            (y.square() * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)).sum()
            for y in outs
        )

    return loss


def test_first_derivatives_of_every_op(case):
    op, expected, tensors = case
    for transform in (grad, lambda f, dims: jacrev(f, dims), lambda f, dims: jacfwd(f, dims)):
        torch.testing.assert_close(
            transform(scalar(op), every(tensors))(*tensors),
            transform(scalar(expected), every(tensors))(*tensors),
        )
    for jacobian in (jacrev, jacfwd):
        torch.testing.assert_close(
            jacobian(op, every(tensors))(*tensors), jacobian(expected, every(tensors))(*tensors)
        )


def test_products_with_vectors_of_every_op(case):
    op, expected, tensors = case
    along = tuple(torch.randn_like(x) for x in tensors)
    torch.testing.assert_close(jvp(op, tensors, along), jvp(expected, tensors, along))
    out, back = vjp(op, *tensors)
    wanted, back_wanted = vjp(expected, *tensors)
    torch.testing.assert_close(out, wanted)
    cotangents = torch.randn_like(out) if isinstance(out, torch.Tensor) else tuple(map(torch.randn_like, out))
    torch.testing.assert_close(back(cotangents), back_wanted(cotangents))
    with torch.no_grad():
        torch.testing.assert_close(vjp(op, *tensors)[1](cotangents), back_wanted(cotangents))
        torch.testing.assert_close(jvp(op, tensors, along), jvp(expected, tensors, along))


def test_a_tangent_of_one_argument_alone(case):
    op, expected, tensors = case
    for i in every(tensors):

        def with_one(call, i=i):
            return lambda x: call(*tensors[:i], x, *tensors[i + 1 :])

        along = torch.randn_like(tensors[i])
        torch.testing.assert_close(
            jvp(with_one(op), (tensors[i],), (along,)), jvp(with_one(expected), (tensors[i],), (along,))
        )
        torch.testing.assert_close(
            grad(scalar(with_one(op)))(tensors[i]), grad(scalar(with_one(expected)))(tensors[i])
        )


def test_second_derivatives_of_every_op(case):
    op, expected, tensors = case
    dims = every(tensors)
    wanted = hessian(scalar(expected), dims)(*tensors)
    torch.testing.assert_close(hessian(scalar(op), dims)(*tensors), wanted)
    torch.testing.assert_close(jacrev(jacfwd(scalar(op), dims), dims)(*tensors), wanted)
    torch.testing.assert_close(jacrev(grad(scalar(op), dims), dims)(*tensors), wanted)


def test_vmap_of_every_op_over_any_of_its_arguments(case):
    op, expected, tensors = case
    choices = [every(tensors), *((i,) for i in every(tensors))]
    for batched in choices:
        for place in (0, -1):
            many = tuple(
                torch.randn(3, *x.shape, dtype=x.dtype).movedim(0, place) if i in batched else x
                for i, x in enumerate(tensors)
            )
            dims = tuple(place if i in batched else None for i in every(tensors))
            alone = [
                expected(*(x if dim is None else x.select(dim, i) for x, dim in zip(many, dims, strict=True)))
                for i in range(3)
            ]
            actual = vmap(op, dims)(*many)
            outs = (actual,) if isinstance(actual, torch.Tensor) else actual
            for k, out in enumerate(outs):
                wanted = torch.stack([one if isinstance(one, torch.Tensor) else one[k] for one in alone])
                torch.testing.assert_close(out, wanted)


def test_transforms_of_transforms_of_every_op(case):
    op, expected, tensors = case
    dims = every(tensors)
    many = tuple(torch.randn(3, *x.shape, dtype=x.dtype) for x in tensors)
    torch.testing.assert_close(vmap(grad(scalar(op), dims))(*many), vmap(grad(scalar(expected), dims))(*many))
    torch.testing.assert_close(
        grad(lambda *xs: vmap(scalar(op))(*xs).sum(), dims)(*many),
        grad(lambda *xs: vmap(scalar(expected))(*xs).sum(), dims)(*many),
    )
    torch.testing.assert_close(
        vmap(vmap(op))(*(x[None] for x in many)), vmap(vmap(expected))(*(x[None] for x in many))
    )
    along = tuple(torch.randn_like(x) for x in many)
    torch.testing.assert_close(
        jvp(vmap(grad(scalar(op), dims)), many, along), jvp(vmap(grad(scalar(expected), dims)), many, along)
    )


def test_what_a_transform_gave_can_be_differentiated_by_autograd(case):
    op, expected, tensors = case
    leaves = [x.requires_grad_() for x in tensors]
    found, wanted = (
        torch.autograd.grad(
            sum(g.square().sum() for g in grad(scalar(call), every(tensors))(*leaves)), leaves
        )
        for call in (op, expected)
    )
    torch.testing.assert_close(found, wanted)


def test_functionalize_keeps_the_op_in_the_graph(case):
    op, _, tensors = case
    torch.testing.assert_close(torch.func.functionalize(op)(*tensors), op(*tensors))
    graph = make_fx(torch.func.functionalize(op))(*tensors).graph
    assert any("tsm_triton" in str(node.target) for node in graph.nodes)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_transform_compiles_in_one_graph(backend):
    torch.compiler.reset()

    def loss(x):
        return tsm_triton.temporal_shift(x.sin(), 2).square().sum()

    x = torch.randn(3, 4, 8, 2)
    for call, value in ((grad(loss), x[0]), (vmap(grad(loss)), x)):
        compiled = torch.compile(call, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(value), call(value))


@pytest.mark.parametrize("name", ["temporal_shift", "shift_conv1x1, relu", "residual, relu"])
def test_clips_of_a_batched_call_are_not_mixed(name):
    # 3 frames of each of 2 are not 3 clips of 2
    op, _, shapes, rest = OPS[name]
    tensors = [torch.randn(2, *((3, *shape[1:]) if len(shape) == 4 else shape)) for shape in shapes]
    dims = tuple(0 if len(shape) == 4 else None for shape in shapes)
    tensors = [x if dim == 0 else x[0] for x, dim in zip(tensors, dims, strict=True)]
    with pytest.raises(ValueError, match="divisible by num_segments=2, got 3 frames"):
        vmap(lambda *xs: op(*xs, *rest), dims)(*tensors)


def test_a_batched_packing_is_each_samples_own():
    x, boundaries = torch.randn(2, 4, 5, 2), torch.stack([clip_boundaries([1, 3]), clip_boundaries([2, 2])])
    shifted = vmap(lambda x, b: ops.temporal_shift_packed(x, b, 1, 2, False, 1))(x, boundaries)
    for one, y, b in zip(x, shifted, boundaries, strict=True):
        assert_same_bits(y, packed(one, b, 1, 2, False, 1))


# --- a patched model


@pytest.fixture(params=["test_resnet", "test_vit"])
def pair(request, monkeypatch):
    """A patched model as a function of its parameters and frames, and the same with the shift by its reference."""
    monkeypatch.setattr(timm.layers.attention, "use_fused_attn", lambda: False)  # torch has no tangent of it
    model = visible(timm.create_model(request.param, num_classes=3)).double()
    tsm_triton.patch(model, num_segments=2)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def call(parameters, x):
        return functional_call(model, (parameters, buffers), (x,)).tanh()

    def expected(parameters, x):
        with monkeypatch.context() as patched:
            patched.setattr(
                tsm_triton.patching.shift_hook,
                "temporal_shift",
                lambda x, t, *, shift_div, channel_dim, **_: reference.temporal_shift(
                    x,
                    t,
                    x.shape[channel_dim] // shift_div,
                    x.shape[channel_dim] // shift_div,
                    False,
                    channel_dim,
                ),
            )
            return call(parameters, x)

    size = 160 if request.param == "test_vit" else 32
    return call, expected, parameters, torch.randn(2, 3, size, size, dtype=torch.float64)


def test_a_patched_models_gradients_are_those_of_its_shift_by_slices(pair):
    call, expected, parameters, x = pair

    def loss(call):
        return lambda parameters, x: call(parameters, x).square().sum()

    torch.testing.assert_close(
        grad(loss(call), (0, 1))(parameters, x), grad(loss(expected), (0, 1))(parameters, x)
    )
    along = {name: torch.randn_like(value) for name, value in parameters.items()}, torch.randn_like(x)
    torch.testing.assert_close(jvp(call, (parameters, x), along), jvp(expected, (parameters, x), along))
    # along one direction backward of forward: a product with the Hessian
    torch.testing.assert_close(
        jvp(grad(loss(call)), (parameters, x), along), jvp(grad(loss(expected)), (parameters, x), along)
    )
    torch.testing.assert_close(jacrev(call)(parameters, x), jacrev(expected)(parameters, x))


def test_gradients_of_each_clip_of_a_batch(pair):
    call, _, parameters, x = pair
    clips = torch.stack([x, x.flip(0), torch.randn_like(x)])

    def loss(parameters, clip):
        return call(parameters, clip).square().sum()

    each = [grad(loss)(parameters, clip) for clip in clips]
    wanted = {name: torch.stack([one[name] for one in each]) for name in parameters}
    torch.testing.assert_close(vmap(grad(loss), (None, 0))(parameters, clips), wanted)


def test_an_ensemble_of_patched_models():
    models = [tsm_triton.patch(visible(timm.create_model("test_resnet", num_classes=3)), 2) for _ in range(2)]
    x = torch.randn(4, 3, 32, 32)
    state = stack_module_state(models)
    together = vmap(lambda *state: functional_call(models[0], state, (x,)))(*state)
    torch.testing.assert_close(together, torch.stack([model(x) for model in models]))
