"""What a compiled training step keeps of an op's result: nothing, where it is cheap to make again in the backward."""

from collections.abc import Callable
from typing import Any

import torch.fx.traceback as traceback
from torch.utils.checkpoint import CheckpointPolicy

__all__ = ["made_again"]

# of a node's meta data, which partitioners read
_POLICY = "recompute"
_REGION = "ac_graph_id"


def made_again(noted: Callable[..., Any]) -> Callable[..., Any]:
    """`noted`, whose nodes ask to be computed again in the backward when a training graph is traced through it.

    The convolution behind a shift needs the shifted map for its weights' gradient, and the map itself is kept for
    others anyway. By itself the partitioner of AOTAutograd would keep both: an op that is not torch's own is never
    computed again.
    """

    def tagged(*arguments: Any) -> Any:
        if not traceback.has_preserved_node_meta():
            return noted(*arguments)
        meta = traceback.get_current_meta()
        if _POLICY in meta:  # inside of gradient checkpointing, which says so of all
            return noted(*arguments)
        from ..torch_private import checkpointed_regions

        # a region of its own: what is handed from one to the next is kept
        meta.update({_POLICY: CheckpointPolicy.MUST_RECOMPUTE, _REGION: next(checkpointed_regions)})
        try:
            return noted(*arguments)
        finally:
            for key in (_POLICY, _REGION):
                meta.pop(key, None)

    return tagged
