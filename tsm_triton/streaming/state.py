"""What a saved stream must hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["check_state"]


def check_state(
    state: Mapping[str, Tensor],
    consensus: int | None,
    frame_shape: tuple[int, ...],
    held: Mapping[str, Tensor],
) -> tuple[tuple[int, ...], list[int]]:
    """Raise unless the tensors of a `Streaming.state_dict` with the right keys fit each other.

    Args:
        consensus: of the stream that will go on.
        frame_shape, held: the frames and tensors that stream has seen, of which the state's may be like.

    Returns:
        The frame shape and the age of each stream in the state.
    """
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"expected the state of a stream, a tensor at {key!r}, got {type(value).__name__}. Pass what "
                "state_dict returned."
            )
    frame = state["frame_shape"]
    if frame.dtype != torch.long or frame.shape != (4,) or (frame < 1).any():
        raise _unlike("frame_shape", "four positive integers [B, 3, H, W]", frame)
    num_streams = int(frame[0])
    for key in ("ages", "consensus.seen"):
        value = state.get(key)
        if value is not None and (
            value.dtype != torch.long or value.shape != (num_streams,) or (value < 0).any()
        ):
            raise _unlike(key, f"an integer for each of {num_streams} streams", value)
    for key, value in state.items():
        if key.startswith("cache."):  # k rows a stream; none at a site that does not run
            if value.numel() and (value.dim() < 2 or value.shape[0] % num_streams):
                raise _unlike(key, f"rows for each of {num_streams} streams", value)
        elif key.startswith("last.") and value.shape[:1] != (num_streams,):
            raise _unlike(key, f"a row for each of {num_streams} streams", value)
    logits = state.get("consensus.logits")
    if logits is not None and (logits.dim() < 2 or len(logits) != num_streams):
        raise _unlike("consensus.logits", f"the last logits of {num_streams} streams", logits)
    if logits is not None and logits.shape[1] != consensus:
        raise ValueError(
            f"expected the state of a stream with consensus={consensus}, got {logits.shape[1]}. Make the stream as "
            "the saved one was made."
        )
    shape = tuple(frame.tolist())
    for key, tensor in held.items() if shape == frame_shape else ():
        if state[key].shape != tensor.shape:
            raise _unlike(key, f"the shape of the frames before it, {list(tensor.shape)}", state[key])
    return shape, state["ages"].tolist()


def _unlike(key: str, expected: str, value: Tensor) -> ValueError:
    return ValueError(
        f"expected the state of a stream, at {key!r} {expected}, got {value.dtype} {list(value.shape)}. Pass what "
        "state_dict returned, to a stream made as that one was."
    )
