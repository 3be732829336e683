"""What a rewriting did to a graph, place by place."""

from dataclasses import dataclass, field

__all__ = ["Fusion", "FusionReport"]


@dataclass(frozen=True)
class Fusion:
    """One place of the graph that was rewritten, or that stayed as it was.

    Attributes:
        site: the name of the module it stands at.
        kind: of a fused place `"shift + conv1x1"`, `"conv1x1 + residual"`, `"shift + conv1x1 + residual"`,
            `"conv1x1"` (with activation or bias alone) or `"residual + shift"`, on a GPU also `"convolution"`,
            `"convolution + residual"`, `"stem"` and `"depthwise"`; of one that stayed `"shift"` or `"residual"`.
        reason: the activation that was taken along, or why nothing was rewritten.
    """

    site: str
    kind: str
    reason: str


@dataclass
class FusionReport:
    """What a rewriting did to a graph; `print` shows it as a table.

    Attributes:
        fused: the places that run on a fused op now.
        left: the shifts and residual sums that stayed, with the reasons.
        batch_norms: how many batch-norms became part of a convolution or of a fused op.
    """

    fused: list[Fusion] = field(default_factory=list)
    left: list[Fusion] = field(default_factory=list)
    batch_norms: int = 0

    def __str__(self) -> str:
        rows = [("fused", entry) for entry in self.fused] + [("left", entry) for entry in self.left]
        head = f"{len(self.fused)} fused, {len(self.left)} left, {self.batch_norms} batch-norms folded"
        site, kind = (max((len(getattr(e, name)) for _, e in rows), default=0) for name in ("site", "kind"))
        return "\n".join(
            [
                head,
                *(f"{what:<5}  {e.site:<{site}}  {e.kind:<{kind}}  {e.reason}".rstrip() for what, e in rows),
            ]
        )
