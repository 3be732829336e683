"""The demo: its clips tell nothing frame by frame, and it runs from MP4 files to a picture."""

import json
from pathlib import Path

import pytest
import torch
from einops import rearrange, reduce

from tsm_triton.cli import main
from tsm_triton.commands.demo import command as demo
from tsm_triton.commands.demo import motion_clips
from tsm_triton.commands.demo.motion_clips import CLASSES, REVERSED, render, sample_textures, write_clip
from tsm_triton.commands.demo.report import check_folder
from tsm_triton.video.decoding import probe, read_clip

ALL = torch.arange(len(CLASSES))


def textures(num_clips, seed=0):
    return sample_textures(num_clips, torch.Generator().manual_seed(seed))


def one_texture():
    """The same texture and speed for each class."""
    return motion_clips.Texture(*(x.expand(len(CLASSES), *x.shape[1:]) for x in textures(1)))


def test_a_clip_played_backwards_is_a_clip_of_the_reverse_class():
    texture = textures(len(CLASSES))
    backwards = render(texture, torch.tensor(REVERSED)[ALL])
    assert torch.equal(render(texture, ALL), backwards.flip(1))


def test_all_motions_pass_through_the_same_middle():
    clips = render(one_texture(), ALL, num_segments=9)
    assert (clips[:, 4] == clips[0, 4]).all()
    assert all(not torch.equal(clips[i, 3], clips[j, 3]) for i in ALL for j in ALL if i < j)


def test_motions_are_what_their_names_say():
    quarter_turn = torch.pi / 2
    texture = one_texture()._replace(speed=torch.zeros(len(CLASSES)))
    clips = {name: clip.float() for name, clip in zip(CLASSES, render(texture, ALL), strict=True)}
    # The slowest translation is one pixel a frame.
    assert (clips["right"][1, :, :, 1:] - clips["right"][0, :, :, :-1]).abs().max() <= 1
    assert (clips["down"][1, :, 1:] - clips["down"][0, :, :-1]).abs().max() <= 1

    turned = texture._replace(direction=texture.direction + quarter_turn)
    label = torch.full((len(CLASSES),), CLASSES.index("clockwise"))
    expected = render(texture, label)[:1].rot90(-1, (-2, -1))
    assert (render(turned, label)[:1].float() - expected.float()).abs().max() <= 1


def test_zooming_in_makes_waves_longer():
    texture = textures(64)
    edges = {}
    for name in ("zoom in", "zoom out"):
        # No wave may wrap around here: they all start in the middle of the band.
        middle = texture._replace(position=torch.full_like(texture.position, 0.5))
        clips = render(middle, torch.full((64,), CLASSES.index(name))).float()
        edges[name] = clips.diff(dim=-1).square().mean((0, 2, 3, 4))
    assert (edges["zoom in"].diff() < 0).all()
    assert (edges["zoom out"].diff() > 0).all()


@pytest.mark.parametrize("t", [0, 7])
def test_one_frame_looks_alike_in_all_classes(t):
    per_class = 192
    frames = []
    for seed, label in enumerate(ALL):
        fastest = textures(per_class, seed)._replace(speed=torch.ones(per_class))
        frames.append(render(fastest, label.expand(per_class), size=24)[:, t])
    frames = torch.cat(frames).float()
    centre, border = frames[..., 8:16, 8:16], frames[..., :8, :]
    statistics = torch.stack(
        [
            reduce(frames, "n rgb h w -> n", "mean"),
            frames.std((1, 2, 3)),
            reduce(frames.diff(dim=-1).square(), "n rgb h w -> n", "mean"),
            reduce(frames.diff(dim=-2).square(), "n rgb h w -> n", "mean"),
            reduce((frames[..., 1:, 1:] - frames[..., :-1, :-1]).square(), "n rgb h w -> n", "mean"),
            reduce((frames[..., 8:] - frames[..., :-8]).square(), "n rgb h w -> n", "mean"),
            centre.std((1, 2, 3)) - border.std((1, 2, 3)),
        ]
    )
    by_class = rearrange(statistics, "s (c n) -> s c n", n=per_class)
    spread = statistics.std(1, keepdim=True) / per_class**0.5
    deviations = (by_class.mean(-1) - statistics.mean(1, keepdim=True)) / spread
    assert deviations.abs().max() < 4


def test_written_clips_read_back_frame_for_frame(tmp_path):
    clip = render(textures(1), ALL[:1])[0]
    path = tmp_path / "clip.mp4"
    write_clip(path, clip)
    assert probe(path).num_frames == len(clip)
    decoded = read_clip(path, num_segments=len(clip))[0]
    error = (decoded.float() - clip.float()).abs().mean((1, 2, 3))
    assert error.max() < 6  # of 255: chroma is stored at half the resolution
    assert (decoded[1:].float() - clip[:-1].float()).abs().mean() > 2 * error.mean()


def test_frames_are_coded_without_their_neighbours(tmp_path):
    clip = render(textures(1), ALL[:1])[0]
    for name, frames in (("forward", clip), ("backward", clip.flip(0))):
        write_clip(tmp_path / f"{name}.mp4", frames)
    forward, backward = (read_clip(tmp_path / f"{name}.mp4", 8)[0] for name in ("forward", "backward"))
    assert torch.equal(forward, backward.flip(0))


def test_the_mpeg4_fallback_reads_back_too(tmp_path, monkeypatch):
    import av

    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    clip = render(textures(1), ALL[:1])[0]
    write_clip(tmp_path / "clip.mp4", clip)
    assert (read_clip(tmp_path / "clip.mp4", 8)[0].float() - clip.float()).abs().mean() < 8


def test_the_demo_runs_from_clips_to_picture(tmp_path, capsys):
    argv = ["demo", "--clips", "40", "--epochs", "2", "--seed", "3", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "new" / "demo")]) == 1  # 32 clips teach nothing
    out = tmp_path / "new" / "demo"
    assert {path.name for path in out.iterdir()} == {"clips", "results.json", "demo.png"}
    assert len(list(out.glob("clips/train/*.mp4"))) == 32
    assert len(list(out.glob("clips/test/*.mp4"))) == 8
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")

    results = json.loads((out / "results.json").read_text())
    assert results["arguments"]["seed"] == 3
    assert {"torch", "timm", "python"} <= results["versions"].keys()
    for training in results["trainings"].values():
        assert len(training["test_accuracy"]) == len(training["train_loss"]) == 2
        assert len(training["predictions"]) == 8
        assert training["seconds_per_step"] > 0
    assert results["as_expected"] is False
    printed, said = capsys.readouterr()
    for line in ("Writing 40 clips", "Reading 40 clips", "Training TSM, epoch 2 of 2: loss "):
        assert line in said
    assert "Verdict: NOT as expected" in printed
    check_folder(out)  # a second demo may go there
    assert "TSN" in printed
    assert "TSM" in printed


def test_a_causal_model_is_tested_on_whole_clips_and_streamed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(demo.TRAINING, "causal", (40, 1))
    monkeypatch.setattr(demo, "TSM_ABOVE", -1)
    monkeypatch.setattr(demo, "TSN_BELOW", 100)
    assert main(["demo", "--direction", "causal", "--device", "cpu"]) == 0
    streamed = json.loads(Path("demo/results.json").read_text())["streamed"]
    assert streamed["offline"] == streamed["frame by frame"]
    assert streamed["largest difference of logits"] < 1e-4
    percent = f"{streamed['offline']:.1f} %"
    assert f"TSM on whole clips {percent}, streamed frame by frame {percent}" in capsys.readouterr().out
    # and its weights are what streams by default
    assert main(["stream", "demo/clips/test/0000-right.mp4"]) == 0
    assert Path("stream/annotated.mp4").exists()


def test_training_is_reproducible():
    clips = demo.Clips(render(textures(16), ALL.repeat(2)), ALL.repeat(2))
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = demo.create_backbone("test_resnet", num_classes=len(CLASSES))
        classifier = demo.VideoClassifier(model, 8)
        losses.append(demo.train(classifier, clips, clips, 2, 1, "TSN", torch.device("cpu")).train_loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("tsn", "tsm", "words"),
    [
        (12.5, 99.0, ["TSM sees the motion"]),
        (12.5, 90.0, ["NOT as expected", "TSM reached 90.0 %"]),
        (40.0, 99.0, ["NOT as expected", "TSN reached 40.0 %"]),
    ],
)
def test_the_verdict_is_honest(tsn, tsm, words):
    as_expected, verdict = demo._verdict(tsn, tsm, chance=12.5)
    assert as_expected == ("NOT" not in verdict)
    assert all(word in verdict for word in words)


@pytest.mark.parametrize(
    "argv",
    [
        ["--clips", "3"],
        ["--epochs", "0"],
        ["--model", "test_resnt"],
        ["--model", "vit_tiny_patch16_224"],  # takes frames of its own size only
    ],
)
def test_bad_arguments_fail_before_any_clip_is_written(argv, tmp_path, capsys):
    assert main(["demo", *argv, "--out", str(tmp_path / "demo")]) == 2
    assert "tsm-triton: error: expected" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "held", ["causal.pt", "results.json", "demo.png", "clips/train.txt", "clips/train/a.mp4"]
)
def test_a_folder_with_files_of_others_is_refused(held, tmp_path, capsys):
    (tmp_path / held).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / held).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["demo", "--clips", "40", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected --out to be a new folder, or a demo's" in error
    assert held in error
    assert sorted(tmp_path.rglob("*")) == before
