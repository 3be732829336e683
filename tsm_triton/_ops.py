"""The namespace of the registered ops: the name that the package is imported by, `torch.ops.tsm_triton` as a rule.

Nothing else knows it, so copies of the package under different names live in one process. It stands in this file, under
these names, because Hugging Face's `kernel-builder` writes a file of its own in its place, for kernels of their hub.
"""

import re

import torch

__all__ = ["add_op_namespace_prefix", "ops"]

_NAMESPACE = re.sub(r"\W", "_", __name__.removesuffix("._ops"))
ops = getattr(torch.ops, _NAMESPACE)


def add_op_namespace_prefix(op_name: str) -> str:
    """The op's full name, `namespace::op_name`."""
    return f"{_NAMESPACE}::{op_name}"
