"""`shift_disabled` and `packed_clips` of threads and tasks that come and go side by side."""

import asyncio
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import timm
import torch

import tsm_triton
from tsm_triton import Streaming, VideoClassifier, packed_clips, shift_disabled

T = 4
FRAMES = torch.randn(2 * T, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
    return tsm_triton.patch(network, T)


def scores(model, context=None):
    if context is None:
        return model(FRAMES)
    with context:
        return model(FRAMES)


def check_plain(model, expected):
    assert torch.equal(model(FRAMES), expected)
    assert torch.equal(torch.compile(model, backend="eager")(FRAMES), expected)


def test_contexts_that_end_in_the_order_they_began_leave_the_model_as_it_was(model):
    plain, flat = scores(model), scores(model, shift_disabled(model))
    first, second = ExitStack(), ExitStack()
    first.enter_context(shift_disabled(model))
    second.enter_context(shift_disabled(model))
    first.close()
    assert torch.equal(model(FRAMES), flat)
    second.close()
    check_plain(model, plain)
    packed = [scores(model, packed_clips(model, lengths)) for lengths in ([3, 5], [2, 6])]
    first.enter_context(packed_clips(model, [3, 5]))
    second.enter_context(packed_clips(model, [2, 6]))
    assert torch.equal(model(FRAMES), packed[1])
    first.close()
    assert torch.equal(model(FRAMES), packed[1])
    second.close()
    check_plain(model, plain)


def test_threads_are_inside_side_by_side(model):
    plain, flat = scores(model), scores(model, shift_disabled(model))
    inside, left = threading.Event(), threading.Event()

    def first():
        with shift_disabled(model):
            assert inside.wait(30)
        left.set()

    def second():
        with shift_disabled(model):
            inside.set()
            assert left.wait(30)
            return model(FRAMES)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(first)
        assert torch.equal(pool.submit(second).result(), flat)
    check_plain(model, plain)


def test_tasks_pack_one_at_a_time_and_others_see_none_of_it(model):
    plain, packed = scores(model), scores(model, packed_clips(model, [3, 5]))

    async def packs(entered, leave):
        with packed_clips(model, [3, 5]):
            entered.set()
            await leave.wait()
            inside = await asyncio.gather(asyncio.to_thread(model, FRAMES), task_inside())
            return model(FRAMES), *inside

    async def task_inside():
        return model(FRAMES)

    async def others():
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(packs(entered, leave))
        await entered.wait()
        assert torch.equal(model(FRAMES), plain)
        with pytest.raises(RuntimeError, match="expected no other thread inside packed_clips"):
            VideoClassifier(model)(FRAMES, [2, 6])
        leave.set()
        return await task

    for result in asyncio.run(others()):
        assert torch.equal(result, packed)
    check_plain(model, plain)


def test_a_task_that_is_over_leaves_its_packing_to_the_thread(model):
    packed, context = scores(model, packed_clips(model, [3, 5])), packed_clips(model, [3, 5])

    async def enters():
        context.__enter__()

    async def runs():
        return model(FRAMES)

    async def both():
        await asyncio.create_task(enters())
        return await asyncio.create_task(runs())

    assert torch.equal(asyncio.run(both()), packed)
    with ThreadPoolExecutor(1) as pool:
        assert not torch.equal(pool.submit(model, FRAMES).result(), packed)
    plain = copy.deepcopy(model)
    context.__exit__(None, None, None)
    check_plain(model, plain(FRAMES))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_classifier_of_clips_has_its_own_length_inside_of_a_packing(model, compiled):
    classifier = VideoClassifier(torch.compile(model, backend="eager") if compiled else model, T)
    whole = torch.compile(classifier, backend="eager")
    video = FRAMES.unflatten(0, (2, T))
    expected, short = classifier(video), classifier(video[:, :3])
    with packed_clips(model, [3, 5]):
        packed = model(FRAMES)
        for run in (classifier, whole):
            torch.testing.assert_close(run(video), expected)
            torch.testing.assert_close(run(video[:, :3]), short)
        assert torch.equal(model(FRAMES), packed)
    check_plain(model, model(FRAMES))


def test_a_replaced_module_leaves_with_the_others(model):
    plain = scores(model)
    with shift_disabled(model):
        flat = model(FRAMES)
        before = model.layer1
        model.layer1 = copy.deepcopy(before)
        assert torch.equal(model(FRAMES), flat)
    check_plain(model, plain)
    model.layer1 = before
    check_plain(model, plain)
    with packed_clips(model, [3, 5]):
        copied = copy.deepcopy(model)
        stream = Streaming(tsm_triton.patch(tsm_triton.unpatch(copy.deepcopy(model)), T, direction="causal"))
        assert stream(FRAMES[:1]).shape == (1, 5)
    check_plain(copied, plain)
