"""`load_exported`: a file of `export` as a model, of clips or of a stream."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_floats
from ..preparation import Preparation, set_preparation
from ..streaming.state import check_caches, overwrite
from ..streaming.step import StreamStep
from ..video.classifier import CONSENSUS, VIEW_AVERAGE
from .description import FRAMES
from .runtimes import Runtime, open_file

__all__ = ["ExportedClips", "ExportedStep", "load_exported"]


def load_exported(path: str | os.PathLike[str], device: str | torch.device | None = None) -> Any:
    """Open a file that `export` wrote, for prediction.

    A `.pt2` runs code of torch, and an AOTInductor package its own: open those of people that you trust.

    Args:
        path: an `.onnx` file, which onnxruntime runs; a `.pt2` of `torch.export`, or an AOTInductor package.
        device: where to run; by default where it was made for, ONNX on CUDA where onnxruntime has it.

    Returns:
        A model of clips, `[N, T, 3, H, W]` -> `[N, num_classes]`; of a stream's file its step, for `Streaming(step)`.
        `said` is what the file says, `runtime.device` where tensors are taken.

    Raises:
        FileNotFoundError, ValueError: no such file, one that does not say how it is used, or not for this device.
        ImportError: onnxruntime is missing.

    Example:
        >>> import tempfile, timm, torch, tsm_triton
        >>> model = tsm_triton.patch(timm.create_model("test_resnet", num_classes=5).eval(), num_segments=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = tsm_triton.export(model, "pt2", f"{folder}/model.pt2", torch.zeros(4, 3, 64, 64))
        ...     exported = load_exported(f"{folder}/model.pt2")
        >>> exported.said["num_segments"], exported(torch.zeros(2, 4, 3, 64, 64)).shape
        (4, torch.Size([2, 5]))
    """
    runtime = open_file(Path(path), None if device is None else torch.device(device))
    return (ExportedStep if "frame" in runtime.said["inputs"] else ExportedClips)(runtime)


class _Exported(nn.Module):
    """What both kinds share: a file that is open, and whose frames say how they are prepared."""

    def __init__(self, runtime: Runtime) -> None:
        nn.Module.__init__(self)  # and not of a step, which would want the model
        self.eval()
        self.runtime, self.said = runtime, runtime.said
        self.dtypes = [getattr(torch, runtime.said["dtypes"][name]) for name in runtime.said["inputs"]]
        how: dict[str, Any] = {key: self.said[key] for key in FRAMES}
        sides = [how["size"] or side for side in next(iter(self.said["inputs"].values()))[-2:]]
        if all(isinstance(side, int) for side in sides):  # a free one is none
            how["size"] = min(sides)
        if all(value is not None for value in how.values()):
            set_preparation(self, Preparation(**how), self.said.get("sampling"))
            # pictures that are not square are refused, where no size is passed
            self.pretrained_cfg = {**self.pretrained_cfg, "input_size": (3, *sides)}

    def on(self, device: str | torch.device | None) -> Any:
        """The same on a device; None for where it is."""
        if device is None or torch.device(device) == self.runtime.device:
            return self
        return load_exported(self.runtime.path, device)

    def _check_frames(self, frames: Tensor, name: str) -> None:
        check_floats(frames, name)
        wanted = self.said["inputs"][name][-3:]
        for size, axis in zip(frames.shape[-3:], wanted, strict=True):
            multiple = int(axis.partition("*")[0]) if isinstance(axis, str) else None
            if size != axis if multiple is None else size % multiple or size < 2 * multiple:
                raise ValueError(
                    f"expected frames {wanted} for {str(self.runtime.path)!r}, got {list(frames.shape[-3:])}: export "
                    "the model for that size, or with dynamic_size"
                )


class ExportedClips(_Exported):
    """An exported model of clips, called as `VideoClassifier` is.

    Attributes:
        consensus, view_average: as the `VideoClassifier`'s that was exported; the latter over the views of a
            six-dimensional input.

    Shapes:
        `[N, T, 3, H, W]` -> `[N, num_classes]`, of `consensus="identity"` a row a frame, `[N, T, num_classes]`;
        `[N, V, T, 3, H, W]` -> the same.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.consensus = self._way("consensus", CONSENSUS)
        self.view_average = self._way("view_average", VIEW_AVERAGE)
        if self.said["outputs"] != ["logits"] or list(self.said["inputs"]) not in (["video"], ["frames"]):
            raise ValueError(
                f"expected a file that turns video or frames into logits, got {str(runtime.path)!r} with inputs "
                f"{', '.join(self.said['inputs'])} and outputs {', '.join(self.said['outputs'])}: export a classifier"
            )

    def _way(self, key: str, known: tuple[str, ...]) -> str:
        """What the file says; the first of what is known where it says nothing."""
        way = self.said.get(key) or known[0]
        if way not in known:
            raise ValueError(
                f"expected {key} of {', '.join(map(repr, known))}, got {way!r} in {str(self.runtime.path)!r}: export "
                "it again"
            )
        return way

    @property
    def fixed_segments(self) -> int | None:
        """The only T that the file takes; None where any is."""
        return None if "frames" in self.said["inputs"].get("video", ()) else self.said["num_segments"]

    def forward(self, video: Tensor) -> Tensor:
        if video.dim() == 6:
            scores = self._scores(video.flatten(0, 1))
            scores = scores.softmax(-1) if self.view_average == "softmax" else scores
            return scores.unflatten(0, video.shape[:2]).mean(1)
        return self._scores(video)

    def _scores(self, video: Tensor) -> Tensor:
        (name,) = self.said["inputs"]
        if (
            video.dim() != 5
            or not len(video)
            or video.shape[1] != (self.fixed_segments or max(1, video.shape[1]))
        ):
            raise ValueError(
                f"video must have shape [N, T, 3, H, W] with T = {self.fixed_segments or 'any'} for "
                f"{str(self.runtime.path)!r}, got {tuple(video.shape)}: export a VideoClassifier for any T"
            )
        self._check_frames(video, name)
        (dtype,) = self.dtypes
        given = (video if name == "video" else video.flatten(0, 1)).to(dtype).contiguous()
        (logits,) = self.runtime.run([given])
        if name == "frames":
            logits = logits.unflatten(0, (len(video), -1))
        elif self.said["consensus"] != "identity":
            return logits  # of the clip
        return logits.mean(1) if self.consensus == "avg" else logits


class ExportedStep(_Exported, StreamStep):
    """A frame of an exported stream, as a `StreamStep`: `logits, state = step(frame, state)`, for `Streaming(step)`."""

    writes_into = False

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.names = [name.removeprefix("cache.") for name in list(self.said["inputs"])[1:]]
        self.features = "features" in self.said["outputs"]

    @property
    def model(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    def init_state(self, frame_or_shape: Tensor | Sequence[int]) -> list[Tensor]:
        streams = len(frame_or_shape) if isinstance(frame_or_shape, Tensor) else frame_or_shape[0]
        _, *shapes = self.said["inputs"].values()
        return [
            torch.zeros(_rows(first) * streams, *rest, dtype=dtype, device=self.device)
            for (first, *rest), dtype in zip(shapes, self.dtypes[1:], strict=True)
        ]

    def run(
        self, frame: Tensor, caches: Sequence[Tensor], into: Sequence[Tensor] | None = None
    ) -> tuple[Any, list[Tensor]]:
        given = [frame.to(self.dtypes[0]), *caches]
        outputs = self.runtime.run([x.contiguous() for x in given])
        count = len(outputs) - len(self.names)
        if into is not None:
            overwrite(into, outputs[count:])
        new = outputs[count:] if into is None else list(into)
        return tuple(outputs[:count]) if self.features else outputs[0], new

    def check(self, frame: Tensor, state: Sequence[Tensor] | None) -> None:
        if not isinstance(frame, Tensor) or frame.dim() != 4 or len(frame) == 0:
            got = tuple(frame.shape) if isinstance(frame, Tensor) else type(frame).__name__
            raise ValueError(
                f"frame must be a tensor of shape [B, 3, H, W], a frame of each stream, got {got}"
            )
        self._check_frames(frame, "frame")
        if state is not None:
            check_caches(self.names, state, len(frame))


def _rows(axis: str) -> int:
    """k of an axis of k rows a stream."""
    multiple, mark, _ = axis.partition("*")
    return int(multiple) if mark else 1
