"""An ONNX file of `tsm_triton.export`, run on a video with onnxruntime, PyAV and NumPy alone.

tsm-triton export best.pt --to onnx --path model.onnx
python examples/onnx_client.py model.onnx video.mp4
"""

import json
import sys

import av
import numpy
import onnxruntime


def read_frames(path: str, count: int) -> list[av.VideoFrame]:
    """The middle frames of `count` equal parts of a video; a short one repeats some."""
    with av.open(path) as container:
        total = sum(1 for _ in container.decode(video=0))
    if not total:
        raise ValueError(f"expected a video with frames, got none in {path!r}: check the file")
    wanted = [int(total / count / 2 + total / count * i) for i in range(count)]
    with av.open(path) as container:
        frames = {i: frame for i, frame in enumerate(container.decode(video=0)) if i in wanted}
    return [frames[i] for i in wanted]


def prepare(frame: av.VideoFrame, said: dict) -> numpy.ndarray:
    """`[3, S, S]`: upright RGB, the short side resized, the centre cropped, normalised."""
    size, least = said["size"], min(frame.width, frame.height)
    width, height = (int(said["short_side"] * side / least) for side in (frame.width, frame.height))
    rgb = frame.reformat(format="rgb24").reformat(width, height, interpolation="BILINEAR").to_ndarray()
    pixels = numpy.rot90(rgb, round(frame.rotation / 90))  # as a camera that was held upright says
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    crop = pixels[top : top + size, left : left + size] / numpy.float32(255)
    return ((crop - numpy.float32(said["mean"])) / numpy.float32(said["std"])).transpose(2, 0, 1)


def classify(model: str, video: str) -> list[tuple[str, float]]:
    """Each class with its probability, the likeliest first."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    said = json.loads(session.get_modelmeta().custom_metadata_map["tsm_triton"])
    (name, *others) = said["inputs"]
    if others or said["mean"] is None or said["size"] is None:
        raise ValueError(f"expected a model of clips that says how square frames are prepared, got {said}")
    frames = read_frames(video, said["num_segments"])
    clip = numpy.stack([prepare(frame, said) for frame in frames]).astype(said["dtypes"][name])
    (scores,) = session.run(["logits"], {name: clip[None] if name == "video" else clip})
    scores = numpy.asarray(scores, numpy.float32)
    logits = scores.reshape(-1, scores.shape[-1]).mean(0)  # over the frames of the clip, or one row for it
    probabilities = numpy.exp(logits - logits.max()) / numpy.exp(logits - logits.max()).sum()
    labels = said["labels"] or [str(i) for i in range(len(probabilities))]
    return sorted(zip(labels, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])


if __name__ == "__main__":
    for label, probability in classify(sys.argv[1], sys.argv[2])[:5]:
        print(f"{probability:.3f}  {label}")
