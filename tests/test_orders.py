"""A model computes what its patch and its weights say, whatever was done to it, and to others, in whichever order.

What is expected is computed from the weights alone, by functions of torch's and a shift by slicing.
"""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule
from torch import Tensor, nn
from torch.nn import functional as F

from tsm_triton import (
    Streaming,
    VideoClassifier,
    fuse,
    is_patched,
    packed_clips,
    patch,
    set_num_segments,
    shift_disabled,
    unpatch,
)

C = 8
SITES = ("stage.0.first", "stage.1.first", "last.first")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(C, C, 3, 1, 1), nn.BatchNorm2d(C), nn.Conv2d(C, C, 1)

    def forward(self, x):
        return x + self.second(self.norm(self.first(x)).relu())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage, self.last = nn.Conv2d(3, C, 1), nn.Sequential(Block(), Block()), Block()
        self.head = nn.Linear(C, 4)

    def forward(self, x):
        return self.head(self.last(self.stage(self.stem(x))).mean((2, 3)))


def shifted(x: Tensor, lengths: list[int], shift_div: int, direction: str) -> Tensor:
    fold, clips = C // shift_div, []
    for clip in x.split(lengths):
        out = clip.clone()
        past = slice(fold, 2 * fold) if direction == "bidirectional" else slice(fold)
        out[1:, past], out[0, past] = clip[:-1, past], 0
        if direction == "bidirectional":
            out[:-1, :fold], out[-1, :fold] = clip[1:, :fold], 0
        clips.append(out)
    return torch.cat(clips)


class Patched:
    """A network, how it is shifted, and the contexts that it is inside of."""

    def __init__(self, module: nn.Module, shift: tuple[int, int, str] | None) -> None:
        self.module, self.shift = module, shift
        self.inside: list[tuple[ExitStack, list[int] | None]] = []

    @property
    def lengths(self) -> list[int]:
        """Of the clips of a call."""
        packed = [lengths for _, lengths in self.inside if lengths is not None]
        return packed[-1] if packed else [3 if self.shift is None else self.shift[0]] * 2

    @property
    def shift_now(self) -> tuple[int, str] | None:
        off = self.shift is None or any(lengths is None for _, lengths in self.inside)
        return None if off or self.shift is None else self.shift[1:]

    def expected(self, x: Tensor) -> Tensor:
        return computed(weights_of(self.module), x, self.lengths, self.shift_now, self.module.training)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def computed(
    weights: dict[str, Tensor], x: Tensor, lengths: list[int], shift: tuple[int, str] | None, training: bool
) -> Tensor:
    def part(name: str, function: Any, x: Tensor, *args: Any) -> Tensor:
        return function(x, weights[f"{name}.weight"], weights[f"{name}.bias"], *args)

    x = part("stem", F.conv2d, x)
    for block in ("stage.0", "stage.1", "last"):
        y = part(f"{block}.first", F.conv2d, x if shift is None else shifted(x, lengths, *shift), 1, 1)
        scale, bias, mean, var = (
            weights[f"{block}.norm.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        y = F.batch_norm(y, mean.clone(), var.clone(), scale, bias, training)
        x = x + part(f"{block}.second", F.conv2d, y.relu())
    return part("head", F.linear, x.mean((2, 3)))


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = (
    copy.deepcopy,
    lambda module: pickle.loads(pickle.dumps(module)),
    saved,
    lambda module: torch.optim.swa_utils.AveragedModel(module).module,
)
# what runs the model that it was made of, as that one is now
AROUND: tuple[Callable[[nn.Module], Callable[[Tensor], Tensor]], ...] = (
    Around,
    nn.DataParallel,
    copy.copy,
    lambda module: torch.compile(module, backend="eager"),
    lambda module: torch.compile(Around(module), backend="eager", fullgraph=True),
    lambda module: lambda x: torch.func.functional_call(module, dict(module.state_dict()), (x,)),
    lambda module: lambda x: torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False),
)


class Orders(RuleBasedStateMachine):
    networks = Bundle("networks")
    runners = Bundle("runners")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        torch.compiler.reset()
        self.contexts = ExitStack()

    def teardown(self):
        self.contexts.close()

    def check(self, network: Patched, call: Callable[[Tensor], Tensor]) -> None:
        x = torch.randn(sum(network.lengths), 3, 4, 4, dtype=torch.double)
        expected = network.expected(x)
        torch.testing.assert_close(call(x).detach(), expected, rtol=1e-9, atol=1e-9)

    @rule(target=networks)
    def make(self):
        module = Network().double()
        for norm in (module.stage[0].norm, module.stage[1].norm, module.last.norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        return Patched(module.eval(), None)

    @rule(
        network=networks,
        T=st.integers(1, 4),
        shift_div=st.sampled_from([2, 4, 8]),
        direction=st.sampled_from(["bidirectional", "causal"]),
    )
    def patch(self, network, T, shift_div, direction):
        if network.shift is None:
            patch(network.module, T, shift_div=shift_div, direction=direction)
            network.shift = (T, shift_div, direction)

    @rule(network=networks)
    def unpatch(self, network):
        if network.shift is not None:
            unpatch(network.module)
            network.shift = None
        assert not is_patched(network.module)

    @rule(network=networks, T=st.integers(1, 4))
    def set_num_segments(self, network, T):
        if network.shift is not None:
            set_num_segments(network.module, T)
            network.shift = (T, *network.shift[1:])

    @rule(target=networks, network=networks, copied=st.sampled_from(COPIES))
    def copy(self, network, copied):
        module = copied(network.module)
        return Patched(module.train(network.module.training), network.shift)

    @rule(network=networks, training=st.booleans())
    def set_mode(self, network, training):
        network.module.train(training)

    @rule(network=networks, other=networks)
    def load(self, network, other):
        network.module.load_state_dict(other.module.state_dict())

    @rule(network=networks, site=st.sampled_from(SITES), whole_block=st.booleans())
    def replace(self, network, site, whole_block):
        name = site.rpartition(".")[0] if whole_block else site
        new = Network().double().get_submodule(name).train(network.module.training)
        network.module.set_submodule(name, new)

    @rule(network=networks, site=st.sampled_from(SITES))
    def put_a_copy_there(self, network, site):
        network.module.set_submodule(site, copy.deepcopy(network.module.get_submodule(site)))

    @rule(network=networks, lengths=st.none() | st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def enter(self, network, lengths):
        if network.shift is None or len(network.inside) > 1:
            return
        stack = ExitStack()
        module = network.module
        stack.enter_context(shift_disabled(module) if lengths is None else packed_clips(module, lengths))
        network.inside.append((stack, lengths))
        self.contexts.push(stack)

    @rule(network=networks)
    def leave(self, network):
        if network.inside:
            network.inside.pop()[0].close()

    @rule(target=runners, network=networks, around=st.sampled_from(AROUND))
    def make_runner(self, network, around):
        return network, around(network.module)

    @rule(runner=runners, gradients=st.booleans())
    def run_what_holds_it(self, runner, gradients):
        network, call = runner
        with torch.set_grad_enabled(gradients):
            self.check(network, call)

    @rule(network=networks, gradients=st.booleans())
    def run(self, network, gradients):
        with torch.set_grad_enabled(gradients):
            self.check(network, network.module)

    @rule(network=networks)
    def run_by_keyword(self, network):
        self.check(network, lambda x: network.module(x=x))

    @rule(network=networks)
    def go_back(self, network):
        x = torch.randn(sum(network.lengths), 3, 4, 4, dtype=torch.double)
        network.module(x).sum().backward()
        network.module.zero_grad()

    @rule(network=networks, T=st.integers(1, 4))
    def classify(self, network, T):
        if network.inside or network.module.training or network.shift is None:
            return
        with torch.no_grad():
            video = torch.randn(2, T, 3, 4, 4, dtype=torch.double)
            actual = VideoClassifier(network.module, T)(video)
            rows = computed(
                weights_of(network.module), video.flatten(0, 1), [T, T], network.shift[1:], training=False
            )
        torch.testing.assert_close(actual, rows.unflatten(0, (2, T)).mean(1), rtol=1e-9, atol=1e-9)

    @rule(network=networks)
    def stream(self, network):
        if network.inside or network.module.training or not network.shift or network.shift[2] != "causal":
            return
        video = torch.randn(3, 3, 4, 4, dtype=torch.double)
        stream = Streaming(network.module)
        with torch.no_grad():
            actual = torch.cat([stream(frame[None]) for frame in video])
        expected = computed(weights_of(network.module), video, [3], network.shift[1:], training=False)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    @rule(network=networks)
    def fuse(self, network):
        if not network.inside and not network.module.training and network.shift is not None:
            with torch.no_grad():
                self.check(network, fuse(network.module))


TestOrders = Orders.TestCase
TestOrders.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
