"""Frame numbers against the formulas of the authors' release, written out in plain Python and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsm_triton.video.sampling import CLIPS, sample_authors, sample_dense, sample_frames, sample_uniform

frames = st.integers(1, 5000)
segments = st.integers(1, 64)
seeds = st.integers(0, 2**32 - 1)
strategies = st.sampled_from(list(CLIPS))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_uniform_test_takes_the_middles():
    assert sample_uniform(80, 8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert sample_uniform(30, 8).tolist() == [1, 5, 9, 13, 16, 20, 24, 28]
    assert sample_uniform(8, 8).tolist() == list(range(8))


def test_a_video_shorter_than_a_clip_repeats_frames_in_test_and_its_first_in_training():
    assert sample_uniform(3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sample_uniform(1, 4).tolist() == [0, 0, 0, 0]
    assert sample_uniform(7, 8, train=True).tolist() == [0] * 8


@given(frames, segments)
def test_uniform_and_twice_equal_the_release(n, t):
    tick = n / t
    middles, starts = ([int(tick / 2.0 + tick * i) for i in range(t)], [int(tick * i) for i in range(t)])
    assert sample_uniform(n, t).tolist() == middles
    assert sample_uniform(n, t, twice=True).tolist() == [middles, starts]


@given(frames, segments, seeds)
def test_uniform_training_draws_one_frame_from_each_part(n, t, seed):
    drawn = sample_uniform(n, t, train=True, generator=seeded(seed))
    part = n // t
    assert all(i * part <= frame < max(1, (i + 1) * part) for i, frame in enumerate(drawn.tolist()))


def test_uniform_training_can_draw_every_frame_of_a_part():
    drawn = torch.stack([sample_uniform(15, 5, train=True, generator=seeded(s)) for s in range(100)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == torch.arange(15).view(5, 3).tolist()


@given(frames, segments, st.integers(1, 12))
def test_dense_test_equals_the_release(n, t, num_clips):
    starts = np.linspace(0, max(1, 1 + n - 64) - 1, num=num_clips, dtype=int)
    expected = [[(i * (64 // t) + start) % n for i in range(t)] for start in starts.tolist()]
    assert sample_dense(n, t, num_clips=num_clips).tolist() == expected


@given(frames, segments, seeds)
def test_dense_training_starts_inside_the_video(n, t, seed):
    drawn = sample_dense(n, t, train=True, generator=seeded(seed)).tolist()
    start, positions = drawn[0], max(1, n - 63)
    assert 0 <= start < max(1, positions - 1)
    assert drawn == [(i * (64 // t) + start) % n for i in range(t)]


def test_dense_training_draws_every_start_but_the_last():
    starts = {int(sample_dense(67, 8, train=True, generator=seeded(s))[0]) for s in range(60)}
    assert starts == {0, 1, 2}


def test_dense_wraps_around_a_short_video():
    assert sample_dense(10, 8, train=True).tolist() == [0, 8, 6, 4, 2, 0, 8, 6]
    assert sample_dense(10, 8).tolist() == [[0, 8, 6, 4, 2, 0, 8, 6]] * 10


@given(frames, segments, strategies, st.booleans(), seeds)
def test_the_front_door_gives_clips_of_frames_inside_the_video(n, t, strategy, train, seed):
    clips = sample_frames(n, t, strategy, train=train, generator=seeded(seed))
    assert clips.dtype == torch.int64
    assert clips.shape == (1 if train else CLIPS[strategy], t)
    assert 0 <= int(clips.min()) <= int(clips.max()) < n
    assert torch.equal(clips, sample_frames(n, t, strategy, train=train, generator=seeded(seed)))


@given(frames, segments)
def test_twice_and_authors_train_as_uniform(n, t):
    drawn = [sample_frames(n, t, s, train=True, generator=seeded(0)) for s in ("uniform", "twice", "authors")]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@given(frames, segments)
def test_authors_equals_the_validation_of_the_release(n, t):
    tick = n / t
    expected = [int(tick / 2.0 + tick * x) for x in range(t)] if n > t else [0] * t
    assert sample_authors(n, t).tolist() == expected
    assert sample_frames(n, t, "authors").tolist() == [expected]


def test_dense_reads_as_many_clips_as_asked_for():
    assert torch.equal(sample_frames(200, 8, "dense", num_clips=3), sample_dense(200, 8, num_clips=3))
    assert sample_frames(200, 8, "dense", num_clips=3, train=True).shape == (1, 8)


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    sample_frames(100, 8, train=True, generator=seeded(0))
    sample_frames(100, 8, "dense", train=True, generator=seeded(0))
    assert torch.equal(before, torch.get_rng_state())


def test_numpy_integers_are_counts():
    assert sample_frames(np.int64(80), np.int32(8)).shape == (1, 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample_frames(0, 8), ValueError, "num_frames must be at least 1, got 0"),
        (lambda: sample_frames(10, 0), ValueError, "num_segments must be at least 1, got 0"),
        (lambda: sample_frames(10, 8.0), TypeError, "num_segments must be an int, got 8.0"),  # pyright: ignore
        (lambda: sample_frames(True, 8), TypeError, "num_frames must be an int, got True"),
        (
            lambda: sample_frames(10, 8, "random"),
            ValueError,
            "'uniform', 'dense', 'twice', 'authors', got 'random'",
        ),  # pyright: ignore
        (lambda: sample_frames(100, 65, "dense"), ValueError, "num_segments <= window=64, got 65"),
        (lambda: sample_frames(9, 8, "twice", num_clips=3), ValueError, "num_clips=2 with 'twice', got 3"),
        (lambda: sample_dense(100, 8, num_clips=0), ValueError, "num_clips must be at least 1, got 0"),
        (
            lambda: sample_uniform(100, 8, train=True, twice=True),
            ValueError,
            "expected train=False, for testing, got train=True",
        ),
    ],
)
def test_a_wrong_request_says_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()
