"""What a published file is found to be, and what its layout, its name and the caller say of the rest."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...choices import DIRECTIONS, PLACES
from ...modules.non_local import MODES
from ...preparation import Preparation

__all__ = ["Choice", "Given", "Layout", "Published", "Recurrent"]

KNOWN = {"place": PLACES, "direction": DIRECTIONS, "non_local": MODES}
KINETICS = "kinetics|k400"
# how the authors' trainer, and mmaction2's, call the folder of a run
RUN = re.compile(r"^TSM_.*_segment\d+_e\d+|\d+x\d+x\d+-\d+e_")


@dataclass(frozen=True)
class Choice:
    """A setting, and who says so."""

    value: Any
    why: str


@dataclass(frozen=True)
class Given:
    """What is known of weights beside their keys: what stands beside them, their file's name, what the caller says.

    Attributes:
        source: where from, for messages.
        name: of the file.
        folder: that it lies in, which says something where it is a trainer's: all files of runs are called alike.
        configuration: that stands in the file, the text of one of mmengine's.
        options: what the caller says.
        asks: whether a setting that nobody says is an error; else its value is None.
    """

    source: str = "the given dictionary"
    name: str = ""
    folder: str = ""
    configuration: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    asks: bool = True

    def choose(
        self,
        option: str,
        *,
        always: Any = None,
        in_configuration: str | None = None,
        in_name: str | None = None,
        default: Any = None,
        why: str = "",
    ) -> Choice:
        """A setting that `always` holds, or the caller, the configuration, a name or the layout says, in this order.

        Args:
            option: its name, as `load_checkpoint` takes it.
            always: what the keys show, or all files of this layout have; the caller cannot say otherwise.
            in_configuration: a pattern that finds it there, as its first group.
            in_name: one that finds it in the file's name, else in that of a run's folder, as its first group.
            default: of the layout; without one the caller is asked.
            why: of `always` or `default`.

        Raises:
            ValueError: the caller says otherwise, or nobody says it.
        """
        said = self.options.get(option)
        if said is not None and option in KNOWN and said not in KNOWN[option]:
            known = ", ".join(map(repr, KNOWN[option]))
            raise ValueError(f"{option} must be one of {known}, got {said!r}: choose one")
        if always is not None:
            if said not in (None, always):
                raise ValueError(
                    f"expected {option}={always!r}, {why} ({self.source}), got {option}={said!r}: drop {option}"
                )
            return Choice(always, why)
        if said is not None:
            return Choice(said, "as was said")
        places = (
            (in_configuration, self.configuration, "from the configuration in the file"),
            (in_name, self.name, "from the file's name"),
            (in_name, self._run, "from its folder's name"),
        )
        for finds, text, where in places:
            found = re.search(finds, text) if finds else None
            if found is not None:
                value = found[1].replace("-", "_")
                return Choice(int(value) if value.isdecimal() else value, where)
        if default is None and not self.asks:
            return Choice(None, f"to be said: {why}")
        if default is None:
            raise ValueError(
                f"expected {option}, which decides the numbers and which neither keys nor name of {self.source} say, "
                f"got none ({why}). Pass {option}=..."
            )
        return Choice(default, why)

    @property
    def _run(self) -> str:
        return self.folder if RUN.search(self.folder) else ""

    def is_called(self, pattern: str) -> bool:
        """Whether the file's name, or that of a run's folder, holds this."""
        return any(re.search(pattern, name, re.IGNORECASE) for name in (self.name, self._run))

    def labels(self, classes: int) -> list[str] | None:
        """Of Kinetics-400, where a name says that it is that; torchvision has them in the same order."""
        if classes != 400 or not self.is_called(KINETICS):
            return None
        from torchvision.models.video import R3D_18_Weights

        return list(R3D_18_Weights.DEFAULT.meta["categories"])


@dataclass(frozen=True)
class Recurrent:
    """The GRU of a `RecurrentHead`."""

    hidden: int
    layers: int


@dataclass(frozen=True)
class Published:
    """Weights of others under the keys of one library's model, with what is needed to use them.

    Attributes:
        layout: the name of their layout.
        networks: the model by library, its name and the options that it is built with.
        state: the weights by the keys of the first of these libraries; a block's non-local ones as `BLOCK.non_local`.
        keys: by library, the key there of one of the first's.
        head: the first library's name of the layer that gives the logits.
        classes: how many it gives.
        shifts: the choices of num_segments, place, shift_div, direction and fold_order.
        sites: the first library's names of the modules whose input is shifted; none of an unshifted network.
        pooled: whether a `TemporalPool` stands before `layer2`.
        non_local: the blocks that a `NonLocal` stands behind.
        mode: of these.
        recurrent: of the head, None of a linear one.
        preparation: of frames.
        labels: of the classes, where known.
        dropout: before the head, as it was trained.
        notes: what else is worth to know.
    """

    layout: str
    networks: dict[str, tuple[str, dict[str, Any]]]
    state: dict[str, Tensor]
    head: str
    classes: int
    shifts: dict[str, Choice]
    sites: tuple[str, ...]
    keys: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    pooled: bool = False
    non_local: tuple[str, ...] = ()
    mode: Choice | None = None
    recurrent: Recurrent | None = None
    preparation: Preparation = field(default_factory=Preparation)
    labels: list[str] | None = None
    dropout: float = 0.5
    notes: tuple[str, ...] = ()

    @property
    def choices(self) -> list[Choice]:
        """All that had to be found out beside the weights."""
        return [*self.shifts.values(), *([] if self.mode is None else [self.mode])]


@dataclass(frozen=True)
class Layout:
    """A published way to name weights.

    Attributes:
        name: for `tsm-triton inspect`.
        where: the repository that publishes it.
        recognises: whether these keys are of it.
        read: the weights, made ours. Raises ValueError for what is of the layout and cannot be used.
    """

    name: str
    where: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    read: Callable[[dict[str, Tensor], Given], Published]
