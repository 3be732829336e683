"""What streams remember between frames: one `StreamState`, which checks, saves, loads, moves and overwrites itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import as_ints
from ..torch_private import foreach_copy_, foreach_zero_

__all__ = ["StreamState", "check_caches", "overwrite", "state_keys"]

# the names in a saved state of what `consensus` and `every` remember
WINDOW = ("consensus.logits", "consensus.seen")
LAST = ("last.logits", "last.features")


class StreamState(Sequence[Tensor]):
    """What B streams remember, as a sequence of their caches, one a site, in the order of a step's `names`.

    A cache has k rows a stream, where the site sees k windows of each frame, or is empty where the model does not
    run the site. What changes a state writes its tensors in place, so that CUDA graphs go on reading them; `to`
    makes another state.

    Args:
        names: of the sites.
        caches: as `StreamStep.init_state` makes them, or none before the first frame; they are taken over.
        frame_shape: `(B, 3, H, W)` of the frames they are of.

    Attributes:
        ages: the frames that each stream has seen, where some are skipped.
        window: of `consensus`: the last logits `[B, K, num_classes]`, and how many of them were seen `[B]`.
        last: of `every`: the last logits, and the last features where those are asked for.
        staged: see `staging`.

    Raises:
        ValueError: caches of other sites, or of another number of streams.

    Example:
        >>> state = StreamState(["conv1", "conv2"], [torch.ones(2, 1), torch.ones(4, 3)], (2, 3, 32, 32))
        >>> state.reset([1])
        >>> state[0].flatten(), state[1].sum(1)
        (tensor([1., 0.]), tensor([3., 3., 0., 0.]))
    """

    def __init__(
        self, names: Iterable[str], caches: Sequence[Tensor] = (), frame_shape: Sequence[int] = ()
    ) -> None:
        self.names = tuple(names)
        self.caches = list(caches)
        self.frame_shape = tuple(frame_shape)
        self.ages = [0] * (frame_shape[0] if frame_shape else 0)
        self.window: list[Tensor] = []
        self.last: tuple[Tensor, ...] = ()
        self.staged: list[Tensor] | None = None
        if frame_shape:
            check_caches(self.names, self.caches, self.num_streams)

    def __len__(self) -> int:
        return len(self.caches)

    def __getitem__(self, index: Any) -> Any:
        return self.caches[index]

    @property
    def num_streams(self) -> int:
        """B, 0 before the first frame."""
        return len(self.ages)

    def check_frame(self, frame: Tensor) -> None:
        """Raise unless the next frame is like those before it."""
        if tuple(frame.shape) != self.frame_shape:
            raise ValueError(
                f"frame must have the shape of the frames before it, {self.frame_shape}, got "
                f"{tuple(frame.shape)}: the caches hold features of that size. Call reset() to begin "
                "with another batch or size."
            )

    def staging(self) -> list[Tensor]:
        """Tensors like the caches, always the same, to hold a frame's values until all of it has succeeded."""
        if self.staged is None:
            with torch.inference_mode(False):
                self.staged = [torch.empty_like(cache) for cache in self.caches]
        return self.staged

    def take(self, streams: Tensor) -> list[Tensor]:
        """Copies of the caches of some streams.

        Example:
            >>> state = StreamState(["conv1"], [torch.arange(6).view(6, 1)], (3, 3, 32, 32))
            >>> state.take(torch.tensor([2, 0]))[0].flatten()
            tensor([4, 5, 0, 1])
        """
        return [self._by_stream(x)[streams].flatten(0, 1) if x.numel() else x for x in self.caches]

    def put(self, streams: Tensor, caches: Sequence[Tensor]) -> None:
        """Write the caches of some streams, in the form of `take`.

        Example:
            >>> state = StreamState(["conv1"], [torch.zeros(3, 1)], (3, 3, 32, 32))
            >>> state.put(torch.tensor([2, 0]), [torch.tensor([[1.0], [2.0]])])
            >>> state[0].flatten()
            tensor([2., 0., 1.])
        """
        for cache, rows in zip(self.caches, caches, strict=True):
            if cache.numel():
                self._by_stream(cache)[streams] = rows.unflatten(0, (len(streams), -1))

    def reset(self, indices: Iterable[int] | Tensor | None = None) -> None:
        """Let all streams begin anew, or some.

        Raises:
            TypeError, ValueError: numbers of no stream; the streams stay as they were.
        """
        streams = None if indices is None else self._numbers(indices)
        tensors = [*self.caches, *self.window]
        if streams is not None:
            tensors = [self._by_stream(x)[i] for x in tensors if x.numel() for i in streams]
        if tensors:
            foreach_zero_(tensors)
        for i in range(self.num_streams) if streams is None else streams:
            self.ages[i] = 0

    def overwrite(
        self, caches: Sequence[Tensor], window: Sequence[Tensor] = (), last: Sequence[Tensor] = ()
    ) -> None:
        """Take the values of a whole frame. `last` is taken over, and so is the first window; the rest is copied."""
        overwrite(self.caches, caches)
        self.window = self.window or list(window)
        overwrite(self.window, window)
        self.last = tuple(last)

    def to(self, device: torch.device | str) -> "StreamState":
        """A copy on a device."""
        copy = StreamState(self.names, _copies(self.caches, device), self.frame_shape)
        copy.window, copy.last = _copies(self.window, device), tuple(_copies(self.last, device))
        copy.ages = list(self.ages)
        return copy

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that is remembered, under the names of `state_keys`."""
        tensors = {name: x.clone() for name, x in self._named().items()}
        return {**tensors, "frame_shape": torch.tensor(self.frame_shape), "ages": torch.tensor(self.ages)}

    def loaded(
        self, saved: Mapping[str, Tensor], consensus: int | None, device: torch.device | str
    ) -> "StreamState":
        """What a `state_dict` of the right keys holds.

        For frames like those before it, this is the state itself, overwritten in place, else a new one.

        Args:
            consensus: of the stream that will go on.

        Raises:
            TypeError, ValueError: tensors that do not fit each other, or those of this state where the frames
                have one shape; a window of another `consensus`. The state stays as it was.
        """
        frame_shape = _check_saved(saved, consensus)
        held = self._named()
        for key, tensor in held.items() if frame_shape == self.frame_shape else ():
            if not key.startswith("last.") and saved[key].shape != tensor.shape:
                raise _unlike(key, f"the shape of the frames before it, {list(tensor.shape)}", saved[key])
        caches = [saved[f"cache.{name}"] for name in self.names]
        new = StreamState(self.names, _copies(caches, device), frame_shape)
        new.window = _copies((saved[key] for key in WINDOW if key in saved), device)
        new.last = tuple(_copies((saved[key] for key in LAST if key in saved), device))
        state = self if frame_shape == self.frame_shape and _kinds(self) == _kinds(new) else new
        if state is self:
            self.overwrite(new.caches, new.window, new.last)
        state.ages = saved["ages"].tolist()
        return state

    def _named(self) -> dict[str, Tensor]:
        named = {f"cache.{name}": cache for name, cache in zip(self.names, self.caches, strict=False)}
        named |= zip(WINDOW, self.window, strict=False)
        return named | dict(zip(LAST, self.last, strict=False))

    def _by_stream(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.num_streams, -1))

    def _numbers(self, indices: Iterable[int] | Tensor) -> list[int]:
        """Streams by number, each of them there."""
        chosen = as_ints(indices, "indices")
        for i in chosen:
            if not 0 <= i < self.num_streams:
                raise ValueError(
                    f"expected streams from 0 to {self.num_streams - 1}, got {i}. Pass numbers of a frame's rows."
                    if self.num_streams
                    else f"expected a stream that has seen a frame, got reset of {i} before the first. Streams "
                    "are new then: call reset after it."
                )
        return chosen


def state_keys(names: Iterable[str], consensus: int | None, every: int, features: bool) -> set[str]:
    """The names in a saved state of a stream with these options.

    Example:
        >>> sorted(state_keys(["conv1"], consensus=None, every=2, features=False))
        ['ages', 'cache.conv1', 'frame_shape', 'last.logits']
    """
    window = () if consensus is None else WINDOW
    last = () if every == 1 else LAST[: 1 + features]
    return {"frame_shape", "ages", *(f"cache.{name}" for name in names), *window, *last}


def check_caches(names: Sequence[str], caches: Sequence[Tensor], num_streams: int) -> None:
    """Raise unless there is a cache for each site, of that number of streams."""
    if len(caches) != len(names):
        raise ValueError(
            f"state must hold one tensor for each of the {len(names)} sites, got {len(caches)}. "
            "Call init_state(frame) for a new one."
        )
    for name, cache in zip(names, caches, strict=True):
        if cache.shape[0] % num_streams:
            raise ValueError(
                f"state must be of as many streams as the frame, {num_streams}, got "
                f"{cache.shape[0]} rows at {name!r}. Pass that batch, or begin with init_state(frame)."
            )


def overwrite(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy in place what is another tensor, in one launch where all lie alike."""
    changed = [i for i, (old, new) in enumerate(zip(tensors, values, strict=True)) if old is not new]
    if changed:
        foreach_copy_([tensors[i] for i in changed], [values[i] for i in changed])


def _check_saved(saved: Mapping[str, Tensor], consensus: int | None) -> tuple[int, ...]:
    """Raise unless the tensors of a saved state fit each other; the shape of its frames."""
    for key, value in saved.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"expected the state of a stream, a tensor at {key!r}, got {type(value).__name__}. Pass what "
                "state_dict returned."
            )
    frame = saved["frame_shape"]
    if frame.dtype != torch.long or frame.shape != (4,) or (frame < 1).any():
        raise _unlike("frame_shape", "four positive integers [B, 3, H, W]", frame)
    num_streams = int(frame[0])
    for key in ("ages", "consensus.seen"):
        value = saved.get(key)
        if value is not None and (
            value.dtype != torch.long or value.shape != (num_streams,) or (value < 0).any()
        ):
            raise _unlike(key, f"an integer for each of {num_streams} streams", value)
    for key, value in saved.items():
        if key.startswith("cache."):  # k rows a stream; none at a site that does not run
            if value.numel() and (value.dim() < 2 or value.shape[0] % num_streams):
                raise _unlike(key, f"rows for each of {num_streams} streams", value)
        elif key.startswith("last.") and value.shape[:1] != (num_streams,):
            raise _unlike(key, f"a row for each of {num_streams} streams", value)
    logits = saved.get("consensus.logits")
    if logits is not None and (logits.dim() < 2 or len(logits) != num_streams):
        raise _unlike("consensus.logits", f"the last logits of {num_streams} streams", logits)
    if logits is not None and logits.shape[1] != consensus:
        raise ValueError(
            f"expected the state of a stream with consensus={consensus}, got {logits.shape[1]}. Make the stream as "
            "the saved one was made."
        )
    return tuple(frame.tolist())


def _unlike(key: str, expected: str, value: Tensor) -> ValueError:
    return ValueError(
        f"expected the state of a stream, at {key!r} {expected}, got {value.dtype} {list(value.shape)}. Pass what "
        "state_dict returned, to a stream made as that one was."
    )


def _kinds(state: StreamState) -> list[Any]:
    """What the tensors must have alike to be overwritten."""
    return [(x.shape, x.dtype, x.device) for x in (*state.caches, *state.window)]


def _copies(tensors: Iterable[Tensor], device: torch.device | str) -> list[Tensor]:
    """Copies that can be written in any mode."""
    with torch.inference_mode(False):
        return [x.to(device, copy=True) for x in tensors]
