"""The server example: streams at their own pace, batched, each as if it were alone."""

import asyncio
import io
import time

import pytest
import timm
import torch
from PIL import Image

from examples.stream_server import load_test
from examples.stream_server.connection import Camera, listening
from tsm_triton.commands.demo.motion_clips import CLASSES
from tsm_triton.streaming.batching import Batcher
from tsm_triton.video.transforms import eval_transform

from .streams import MODELS, assert_close, causal, frames_of, offline


@pytest.fixture
def small():
    return causal(timm.create_model("test_resnet", num_classes=5))


def test_streams_of_any_pace_are_batched_and_do_not_mix(small):
    lengths = [1, 3, 5, 2, 4, 6]
    clips = [frames_of(1, length)[0] for length in lengths]

    async def show(batcher, clip, pause):
        await asyncio.sleep(pause)
        with batcher.join() as client:
            logits = []
            for frame in clip:
                logits.append(await client.predict(frame))
                await asyncio.sleep(pause)
            return torch.stack(logits)

    async def everyone():
        # places for three: the later ones take the rows of those that left
        async with Batcher(small, (3, 32, 32), capacity=3, max_batch=2) as batcher:
            early = await asyncio.gather(*(show(batcher, clips[i], 0.004 * i) for i in range(3)))
            late = await asyncio.gather(*(show(batcher, clips[i], 0.003 * (i - 3)) for i in range(3, 6)))
            assert batcher.num_streams == 0
            return [*early, *late], batcher.batches

    logits, batches = asyncio.run(everyone())
    for actual, clip in zip(logits, clips, strict=True):
        assert_close(actual, offline(small, clip))
    assert max(batches) == 2
    assert sum(size * count for size, count in batches.items()) == sum(lengths)


def test_frames_sent_at_once_are_computed_in_order_and_rows_of_windows_belong_to_their_stream():
    model = causal(MODELS["timm swinv2"]())
    frames = frames_of(2, 3, 64)

    async def everyone():
        async with Batcher(model, (3, 64, 64), capacity=2) as batcher:
            clients = [batcher.join(), batcher.join()]
            jobs = [clients[i].predict(frames[i, t]) for i in range(2) for t in range(3)]
            return await asyncio.gather(*jobs)

    logits = torch.stack(asyncio.run(everyone())).unflatten(0, (2, 3))
    for i in range(2):
        assert_close(logits[i], offline(model, frames[i]))


def test_a_failed_or_abandoned_tick_costs_no_stream_its_past(small):
    frames = frames_of(1, 3)[0]

    def fail(*_):
        raise KeyError("broken")

    async def everyone():
        async with Batcher(small, (3, 32, 32), capacity=1) as batcher:
            client = batcher.join()
            logits = [await client.predict(frames[0])]
            handle = small.register_forward_pre_hook(fail)
            with pytest.raises(KeyError, match="broken"):
                await client.predict(frames[1])
            handle.remove()
            with pytest.raises(ValueError, match=r"frame must have shape \(3, 32, 32\), got \(3, 8, 8\)"):
                await client.predict(frames[0][:, :8, :8])
            with pytest.raises(RuntimeError, match="expected at most 1 streams, got one more"):
                batcher.join()
            logits += [await client.predict(frame) for frame in frames[1:]]
            waiting = asyncio.create_task(client.predict(frames[0]))
            await asyncio.sleep(0)
            client.leave()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(RuntimeError, match="got one that has left"):
                await client.predict(frames[0])
            with batcher.join() as other:
                again = await other.predict(frames[0])
            return torch.stack(logits), again

    logits, again = asyncio.run(everyone())
    assert_close(logits, offline(small, frames))
    assert_close(again, logits[0])


def slow(*_):
    time.sleep(0.1)


@pytest.mark.parametrize("moment", ["computing", "gathering", "queued"])
def test_a_batcher_that_closes_leaves_nobody_waiting(moment, small):
    frame = frames_of(1, 1)[0, 0]
    small.register_forward_pre_hook(slow)

    async def everyone():
        async with Batcher(small, (3, 32, 32), max_batch=1) as batcher:
            client, other = batcher.join(), batcher.join()
            waiting = [asyncio.create_task(client.predict(frame))]
            if moment == "queued":  # one behind another of its stream, and one behind another stream
                waiting += [asyncio.create_task(c.predict(frame)) for c in (client, other)]
            await asyncio.sleep(0 if moment == "gathering" else 0.05)
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        with pytest.raises(RuntimeError, match="expected an open Batcher, got one that is closed"):
            await asyncio.wait_for(client.predict(frame), 5)
        with pytest.raises(RuntimeError, match="expected an open Batcher, got one that is closed"):
            batcher.join()
        return results

    for result in asyncio.run(everyone()):
        assert isinstance(result, (asyncio.CancelledError, RuntimeError))


def test_a_batcher_that_is_not_entered_is_closed(small):
    batcher = Batcher(small, (3, 32, 32))
    with pytest.raises(RuntimeError, match="async with"):
        batcher.join()


def test_a_frame_of_another_dtype_fails_alone(small):
    frame = frames_of(1, 1)[0, 0]

    async def everyone():
        async with Batcher(small, (3, 32, 32)) as batcher:
            jobs = [batcher.join().predict(frame), batcher.join().predict(frame.half())]
            return await asyncio.gather(*jobs, return_exceptions=True)

    good, bad = asyncio.run(everyone())
    assert_close(good, offline(small, frame[None])[0])
    assert isinstance(bad, ValueError)
    assert f"frame must be {frame.dtype}" in str(bad)


def test_pictures_over_tcp(small, caplog):
    small.float()
    preprocess = eval_transform(32, short_side=32)
    pictures = torch.randint(0, 256, (3, 3, 40, 48), dtype=torch.uint8)
    files = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, files, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "png")
    labels = [f"label {i}" for i in range(5)]

    async def everyone():
        async with Batcher(small, (3, 32, 32), capacity=1) as batcher:
            async with listening(batcher, preprocess, labels) as port:
                async with Camera("127.0.0.1", port) as camera:
                    replies = [await camera.show(file.getvalue()) for file in files]
                    replies.append(await camera.show(b"no picture"))
                    async with Camera("127.0.0.1", port) as other:
                        replies.append(await other.show(files[0].getvalue()))
                while batcher.num_streams:  # until the server has seen it leave
                    await asyncio.sleep(0.001)
                camera = await Camera("127.0.0.1", port).__aenter__()
                replies.append(await camera.show(files[0].getvalue()))
            # the server goes while a camera is there
            with pytest.raises(ConnectionError):
                await camera.show(files[0].getvalue())
            await camera.__aexit__()
            return replies

    *answers, none, full, first = asyncio.run(everyone())
    expected = offline(small, preprocess(pictures)).softmax(-1)
    for number, (answer, scores) in enumerate(zip(answers, expected, strict=True)):
        assert answer["frame"] == number
        assert answer["label"] == labels[int(scores.argmax())]
        assert answer["probability"] == pytest.approx(scores.max().item(), abs=1e-3)
    assert "expected a picture, got 10 bytes" in none["error"]
    assert "expected at most 1 streams" in full["error"]
    assert first == answers[0]
    assert not caplog.records  # where asyncio reports errors of tasks


def test_the_load_test_counts_what_it_did():
    model = causal(timm.create_model("test_resnet", num_classes=len(CLASSES)), torch.float32)
    tally, batcher = asyncio.run(load_test.run(model, 32, streams=4, fps=20, max_batch=4, seconds=1.0))
    assert len(tally.seconds) == sum(size * count for size, count in batcher.batches.items()) > 4
    assert tally.joined >= 4
    line = load_test.row(tally, batcher, 4, 4, 1.0)
    assert len(line) == len(load_test.HEAD)


def test_a_frame_may_be_written_while_it_waits(small):
    async def run() -> tuple[torch.Tensor, torch.Tensor]:
        frames = frames_of(1, 2)[0]
        async with Batcher(small, (3, 32, 32), capacity=1) as batcher:
            client = batcher.join()
            expected = torch.stack([await client.predict(frame) for frame in frames])
        async with Batcher(small, (3, 32, 32), capacity=1) as batcher:
            client, buffer, tasks = batcher.join(), torch.empty_like(frames[0]), []
            for frame in frames:
                buffer.copy_(frame)
                tasks.append(asyncio.create_task(client.predict(buffer)))
                await asyncio.sleep(0)
            return expected, torch.stack(await asyncio.gather(*tasks))

    expected, got = asyncio.run(run())
    assert_close(got, expected)
