"""Data sets in tar files: the same items as from files, dealt out to workers, and what cannot be read left out."""

import io
import json
import pickle
import tarfile

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader

from tsm_triton.video import read_clip
from tsm_triton.video.datasets import collate, read_shards
from tsm_triton.video.transforms import train_transform

from .video_files import write_video

# of Python 3.12 and 3.13, wherever a DataLoader starts workers beside threads
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", 24, codec="mpeg4", b_frames=0)


def write_shard(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path, film):
    """Three tar files of two videos each, whose labels count up."""
    for shard in range(3):
        members = []
        for number in (2 * shard, 2 * shard + 1):
            members += [(f"{number:04d}.mp4", film.read_bytes()), (f"{number:04d}.cls", str(number).encode())]
        write_shard(tmp_path / f"shard-{shard}.tar", *members)
    return tmp_path


def test_a_test_reads_every_video_in_order_as_from_its_file(folder, film):
    for urls in (folder, str(folder / "shard-{0..2}.tar"), sorted(folder.iterdir())):
        items = list(read_shards(urls, 4, sampling="twice"))
        assert [label for _, label in items] == list(range(6))
    assert all(torch.equal(clips, read_clip(film, 4, "twice")) for clips, _ in items)


def test_training_items_are_functions_of_seed_epoch_and_name(folder):
    options = dict(training=True, transform=train_transform(32, flip=False))
    shards = read_shards(folder, 4, **options)
    before = torch.get_rng_state()
    first, again = ({label: clip for clip, label in shards} for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert set(first) == set(range(6))
    assert all(torch.equal(first[label], again[label]) for label in first)
    loader = DataLoader(shards, batch_size=1, num_workers=2, collate_fn=collate, persistent_workers=True)
    worked = {int(label): clip[0] for clip, label in loader}
    assert all(torch.equal(first[label], worked[label]) for label in first)
    shards.set_epoch(1)
    other = {int(label): clip[0] for clip, label in loader}
    assert set(other) == set(first)
    assert not all(torch.equal(first[label], other[label]) for label in first)


def test_the_order_changes_with_the_epoch_and_comes_again(folder):
    shards = read_shards(folder, 2, training=True)
    orders = []
    for epoch in (0, 1, 2, 0):
        shards.set_epoch(epoch)
        orders.append([label for _, label in shards])
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == list(range(6)) for order in orders)


def test_processes_and_workers_share_the_tar_files(folder, monkeypatch):
    shards = read_shards(folder, 2, sampling="authors")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        seen.append([label for _, label in shards])
    assert seen == [[0, 1, 4, 5], [2, 3]]


def deal(rank: int, shards, meeting: str, context: str, queue) -> None:
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    workers = {} if context == "none" else dict(num_workers=1, multiprocessing_context=context)
    loader = DataLoader(shards, None, **workers)
    queue.put((rank, [label for _, label in loader]))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("context", ["none", "fork", "spawn"])
def test_workers_share_them_however_they_were_started(context, folder, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    shards = read_shards(folder, 2, sampling="authors")
    spawn(deal, (shards, str(tmp_path / "meeting"), context, queue), nprocs=2)
    assert dict(queue.get() for _ in range(2)) == {0: [0, 1, 4, 5], 1: [2, 3]}


def test_a_pickle_of_them_belongs_to_no_process(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    pickled = pickle.dumps(read_shards(folder, 2, sampling="authors"))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    for workers in (0, 1):
        loader = DataLoader(pickle.loads(pickled), None, num_workers=workers)
        assert [label for _, label in loader] == list(range(6))


@pytest.mark.parametrize(
    ("member", "classes", "label"),
    [
        (("a.txt", b"run\n"), ("jump", "run"), 1),
        (("a.cls", b"1"), ("jump", "run"), 1),
        (("a.json", json.dumps({"label": "jump", "fps": 25}).encode()), ("jump", "run"), 0),
        (("a.json", b'{"label": 7}'), (), 7),
        (("a.cls", b"A"), ("1", "2", "A"), 2),
        (("a.cls", b"0"), ("1", "2", "A"), 0),
        (("a.cls", b"02"), ("01", "02"), 1),
        (("a.cls", b"03"), ("0", "1", "2", "3"), 3),
        (("a.srt", b""), (), -1),
    ],
)
def test_labels_stand_beside_their_video(tmp_path, film, member, classes, label):
    write_shard(tmp_path / "a.tar", ("a.mp4", film.read_bytes()), member)
    assert [label for _, label in read_shards(tmp_path / "a.tar", 2, classes=classes)] == [label]


@pytest.mark.parametrize("training", [False, True])
def test_a_label_is_that_of_its_video_where_names_have_dots(tmp_path, film, training):
    data = film.read_bytes()
    members = [("x.y.mp4", data), ("x.y.cls", b"3"), ("v.1/z.0.mp4", data), ("v.1/z.cls", b"4")]
    members += [("w.mp4", data), ("w.cls", b"5"), ("w.z.cls", b"6")]
    write_shard(tmp_path / "a.tar", *members)
    shards = read_shards(tmp_path / "a.tar", 2, training=training, shuffle=1)
    assert [label for _, label in shards] == [3, 4, 5]


def test_what_cannot_be_read_is_fatal_or_left_out_and_counted(tmp_path, film):
    data = film.read_bytes()
    write_shard(tmp_path / "0.tar", ("a.mp4", data[:1000]), ("b.cls", b"1"), ("c.mp4", data))
    write_shard(tmp_path / "1.tar", ("d.mp4", data), ("e.mp4", data))
    with open(tmp_path / "1.tar", "r+b") as file:
        file.truncate(len(data) + 3000)
    fatal = iter(read_shards(tmp_path, 2))
    with pytest.raises(ValueError, match=r"got '.*0.tar/a' \(expected a video .*0.tar/a"):
        next(fatal)
    with pytest.raises(ValueError, match="expected a tar file of videos, got '.*1.tar'"):
        list(read_shards(tmp_path / "1.tar", 2))
    shards = read_shards(tmp_path, 2, on_error="skip")
    with pytest.warns(UserWarning, match="left out") as seen:
        clips, _ = collate(list(shards))
    assert [len(clips), shards.num_unreadable, len(seen)] == [1, 3, 3]
    assert [name in str(warning.message) for name, warning in zip(("a", "b", "1.tar"), seen, strict=True)]


@pytest.mark.filterwarnings("ignore:left out")
def test_what_a_worker_cannot_read_is_counted_outside(tmp_path, film):
    write_shard(tmp_path / "0.tar", ("a.mp4", b"no video"), ("b.mp4", film.read_bytes()))
    shards = read_shards(tmp_path, 2, on_error="skip")
    assert len(list(DataLoader(shards, batch_size=2, num_workers=1, collate_fn=collate))) == 1
    assert shards.num_unreadable == 1


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([("a.cls", b"run")], {}, "expected the number of a class, got 'run' .*pass classes"),
        ([("a.cls", b"2")], dict(classes=("x", "y")), "labels from 0 to 1, got 2"),
        ([("a.cls", "\uff13".encode())], {}, "expected the number of a class"),
        ([("a.cls", b"-1")], {}, "labels from 0 to .*, got -1"),
        ([("a.json", b"[1]")], {}, "an object with a label in the JSON"),
        ([("a.cls", b"1")], dict(classes=("1", "2", "A")), "class 0 by its name and class 1 by its number"),
        (
            [("a.json", b'{"label": 2}')],
            dict(classes=("1", "2", "A")),
            "class 1 by its name and class 2 by its number",
        ),
        ([], dict(training=True), "to train on, got mp4 for"),
    ],
)
def test_a_label_that_is_none_is_fatal(tmp_path, film, members, options, message):
    write_shard(tmp_path / "a.tar", ("a.mp4", film.read_bytes()), *members)
    with pytest.raises(ValueError, match=message):
        list(read_shards(tmp_path, 2, on_error="skip", **options))


def test_no_tar_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected tar files, got .*without one"):
        read_shards(tmp_path, 2)
    with pytest.raises(ValueError, match="got '.*b.tar', which do not exist"):
        read_shards(tmp_path / "b.tar", 2)


def test_without_webdataset_there_is_a_word(tmp_path, monkeypatch):
    from tsm_triton import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="reading shards needs webdataset: pip install 'webdataset>="):
        read_shards(tmp_path, 2)
