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
        frames = list(container.decode(video=0))
    if not frames:
        raise ValueError(f"expected a video with frames, got none in {path!r}: check the file")
    return [frames[int((i + 0.5) * len(frames) / count)] for i in range(count)]


def prepare(frame: av.VideoFrame, said: dict) -> numpy.ndarray:
    """`[3, S, S]`: the short side resized, the centre cropped, normalised."""
    short, size = said["short_side"], said["size"]
    scale = short / min(frame.width, frame.height)
    width, height = max(short, round(frame.width * scale)), max(short, round(frame.height * scale))
    pixels = frame.reformat(width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    crop = pixels[top : top + size, left : left + size] / numpy.float32(255)
    normalised = (crop - numpy.float32(said["mean"])) / numpy.float32(said["std"])
    return normalised.transpose(2, 0, 1)


def classify(model: str, video: str) -> list[tuple[str, float]]:
    """Each class with its probability, the likeliest first."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    said = json.loads(session.get_modelmeta().custom_metadata_map["tsm_triton"])
    (name, *others) = said["inputs"]
    if others or said["mean"] is None:
        raise ValueError(
            f"expected a model of clips that says how frames are prepared, got {said}: export such a one"
        )
    frames = read_frames(video, said["num_segments"])
    clip = numpy.stack([prepare(frame, said) for frame in frames])
    (logits,) = session.run(["logits"], {name: clip[None] if name == "video" else clip})
    logits = numpy.asarray(logits).mean(0)  # over the frames of the clip, or one row for it
    probabilities = numpy.exp(logits - logits.max()) / numpy.exp(logits - logits.max()).sum()
    labels = said["labels"] or [str(i) for i in range(len(probabilities))]
    return sorted(zip(labels, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])


if __name__ == "__main__":
    for label, probability in classify(sys.argv[1], sys.argv[2])[:5]:
        print(f"{probability:.3f}  {label}")
