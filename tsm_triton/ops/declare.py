"""How an op is declared: its schema, what it checks, its forms and its derivatives, in one call.

An op has up to three forms. A kernel serves CUDA tensors, and CPU tensors too where Triton interprets; another form
serves CPUs; the third, in torch's own operators, runs on any device and is what compilers and exporters are given.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._ops import add_op_namespace_prefix
from .._ops import ops as namespace
from ..torch_private import OpOverload
from ..version import __version__
from .derivatives import differentiate, transform
from .direct import DECLARED, is_interpreting, no_onnx, writes_onnx
from .inductor import let_inductor_decompose, needs_inductor, offer_to_inductor

__all__ = ["ATEN_FORMS", "NAMESPACE", "declare", "library"]

NAMESPACE = add_op_namespace_prefix("").removesuffix("::")

library = torch.library.Library(NAMESPACE, "DEF")


def _sources() -> str:
    """A digest of the files that say what is compiled of an op."""
    package = Path(__file__).parent.parent
    files = [package / "activations.py", *(package / "ops").glob("*.py"), *(package / "kernels").glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.exists():  # not in an archive
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# The caches of torch.compile on disk know an op by its name alone: without this they would hand on the backward, the
# forms in torch's own operators and the kernels of what was installed when they were filled.
torch.compiler.config.cache_key_tag += f" {NAMESPACE} {__version__} {_sources()}"

# op -> the same in torch's own operators: a table for `ExportedProgram.run_decompositions`
ATEN_FORMS: dict[OpOverload, Callable[..., Any]] = {}

TAGS = {
    # One map goes in, and the result follows its strides: Inductor may feed any, and makes the fake anew of what it
    # feeds. Its convolutions on a CPU are channels_last in a network of NCHW too, where other tags make two copies a
    # shift (a compiled ResNet-50 took 1.12 times the unshifted one with them, 1.06 without).
    "any": (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
    # Several maps go in, whose strides must agree as the fakes' do.
    "exact": (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
    # Ops whose result is channels_last whatever they are given. Inductor feeds them maps in channels_last, and not in
    # the strides of the fakes: those of a convolution with a symbolic batch are contiguous on a GPU, where cuDNN's are
    # not.
    "channels_last": (torch.Tag.pt2_compliant_tag,),
}


def declare(
    schema: str,
    *,
    fake: Callable[..., Any],
    on_cpu: Callable[..., Any],
    on_cuda: Callable[..., Any],
    check: Callable[..., None] | None = None,
    aten: Callable[..., Any] | None = None,
    exported: Callable[..., Any] | None = None,
    formula: type[torch.autograd.Function] | Callable[..., Any] | None = None,
    transformed: Callable[..., Any] | None = None,
    layout: str = "any",
    cheap: bool = False,
) -> OpOverload:
    """Register an op of the package's namespace and return it.

    All functions take the op's arguments in their order.

    Args:
        schema: name, arguments and results, as `torch.library` writes them.
        fake: empty results, of the strides that every form gives.
        on_cpu: the form of CPU tensors.
        on_cuda: the form of CUDA tensors, a kernel.
        check: raises for what would make a form leave its memory or mix clips; before every form and the fake.
        aten: the form in torch's own operators, traceable with symbolic sizes. Where Inductor takes it instead of the
            op stands in the table of `inductor.py`.
        exported: the same for files that others run, where that should be another one.
        formula: the derivatives, see `derivatives.differentiate`.
        transformed: what `torch.func`'s transforms run, where `formula` does not say it.
        layout: of `TAGS`: how tensors lie that a compiler feeds the op with.
        cheap: whether a compiled training step computes the result again in the backward rather than keep it.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=TAGS[layout])
    op: OpOverload = getattr(namespace, name).default
    DECLARED.append(name)

    def on_cpu_or_interpreted(*arguments: Any) -> Any:
        form = on_cuda if is_interpreting() else on_cpu
        return form(*arguments)

    def checked_by_tracer(*arguments: Any) -> None:
        # torch.onnx.export(dynamo=False) runs a model for good
        if writes_onnx() and not torch.compiler.is_exporting():
            raise no_onnx(name)
        if check is not None:
            check(*arguments)

    checked_fake = _checked(check, fake)

    @torch.library.register_fake(add_op_namespace_prefix(name), lib=library)
    def _(*arguments: Any) -> Any:
        if writes_onnx():
            raise no_onnx(name)
        if needs_inductor(op, arguments):
            let_inductor_decompose()
        return checked_fake(*arguments)

    library.impl(name, _checked(checked_by_tracer, on_cpu_or_interpreted), "CPU")
    library.impl(name, _checked(checked_by_tracer, on_cuda), "CUDA")
    if formula is not None:
        transformed = differentiate(library, op, formula, cheap)
    if transformed is not None:
        transform(library, op, transformed)
    if aten is not None:
        ATEN_FORMS[op] = exported or aten
    offer_to_inductor(op, aten, exported, on_cuda, layout)
    return op


def _checked(check: Callable[..., None] | None, form: Callable[..., Any]) -> Callable[..., Any]:
    if check is None:
        return form

    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return form(*arguments)

    return checked
