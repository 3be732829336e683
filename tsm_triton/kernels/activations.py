"""The activations inside the fused kernels, and their derivatives: the formulas of `tsm_triton/activations.py`.

    activate(z, ACTIVATION)                          act(z)
    activation_backward(grad, value, ACTIVATION)     the gradient of z; `value` is act(z) or z, whichever the table says

Triton compiles a function from its source, so each is written out here with a branch a name, and Python is told where
that source is. A name that is not in the table does not compile.
"""

import linecache
from typing import Any

import triton
import triton.language as tl

from ..activations import ACTIVATIONS

__all__ = ["activate", "activation_backward"]


def _chosen_by_name(name: str, parameters: str, expressions: dict[str, str]) -> Any:
    """A Triton function of the parameters and a constexpr ACTIVATION, with an expression for each."""
    lines = [f"def {name}({parameters}, ACTIVATION: tl.constexpr):"]
    for i, (activation, expression) in enumerate(expressions.items()):
        lines += [
            f"    {'elif' if i else 'if'} ACTIVATION == {activation!r}:",
            f"        return {expression}",
        ]
    lines += ["    else:", '        tl.static_assert(False, "unknown activation")']
    source = "\n".join(lines) + "\n"
    file = f"<{__name__}.{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope = {"tl": tl, "__name__": __name__}
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope[name])


activate = _chosen_by_name("activate", "z", {name: each.formula for name, each in ACTIVATIONS.items()})
activation_backward = _chosen_by_name(
    "activation_backward", "grad, value", {name: each.derivative for name, each in ACTIVATIONS.items()}
)
