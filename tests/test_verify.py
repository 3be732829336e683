"""`tsm-triton verify`: what it reaches, prints and returns, of right ops and of wrong ones."""

from collections.abc import Callable
from importlib import import_module
from itertools import product
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import TorchDispatchMode

from tsm_triton import ops
from tsm_triton.activations import ACTIVATIONS
from tsm_triton.cli import main
from tsm_triton.commands.verify import checks, model_checks
from tsm_triton.testing import DTYPES, ShiftCase
from tsm_triton.testing.cases import CHANNEL_DIMS

EXACT = "matches the reference, writes nowhere else"
right = ops.temporal_shift


def wrong_beyond_five_channels(x: Tensor, *shift) -> Tensor:
    out = right(x, *shift)
    return torch.zeros_like(out) if x.shape[shift[-1]] > 5 else out


def behind_its_end(x: Tensor, *shift) -> Tensor:
    out = right(x, *shift)
    if out.numel():
        end = (
            out.storage_offset() + sum((n - 1) * s for n, s in zip(out.shape, out.stride(), strict=True)) + 1
        )
        if out.untyped_storage().nbytes() > end * out.itemsize:  # only where there is a guard band
            out.as_strided((1,), (1,), end).fill_(1)
    return out


@pytest.fixture
def verify(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run the command on the checks of a subject that need no kernel, with `op` in the place of the shift."""
    every = checks.checks

    def run(*argv: str, op: Callable[..., Tensor] = right, subject: str = "shift") -> tuple[int, str]:
        def chosen(*arguments) -> list[checks.Check]:
            return [c for c in every(*arguments) if (c.subject, c.form) == (subject, "copies")]

        monkeypatch.setattr(checks, "checks", chosen)
        monkeypatch.setattr(ops, "temporal_shift", op)
        status = main(["verify", "--device", "cpu", "--examples", "20", *argv])
        return status, capsys.readouterr().out

    return run


def reproducer(report: str) -> str:
    """The lines that a report gives of its first failure."""
    lines = report.split("Reproduce it with\n", 1)[1].splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines[:2])


def test_ops_that_hold_are_status_0(verify):
    status, report = verify(subject="packed")
    assert status == 0
    assert f"torch {torch.__version__}, triton " in report
    assert "CPU, Triton interpreted\n20 cases a property, seed 0\n" in report
    assert "\nok    packed    clips of any length stay apart " in report
    assert "\n1 checks passed, 0 failed, in " in report
    assert "Reproduce" not in report


def test_a_wrong_op_is_status_1_with_its_smallest_case(verify):
    status, report = verify(op=wrong_beyond_five_channels)
    assert status == 1
    assert f"\nFAIL  shift     {EXACT} " in report
    assert f"\nFailure 1: shift {EXACT} (copies)\n    AssertionError: expected " in report
    line = reproducer(report).splitlines()[1]
    case = eval(
        line[line.index("ShiftCase(") : line.rindex(", device=")], {"ShiftCase": ShiftCase, "torch": torch}
    )
    assert (case.channels, case.clips, case.num_segments, case.height, case.width) == (6, 1, 1, 1, 1)
    assert (case.n_first, case.n_second, case.layout) == (0, 0, "contiguous")


@pytest.mark.parametrize("op", [wrong_beyond_five_channels, behind_its_end])
def test_the_reproducer_fails_as_the_check_did(verify, op):
    _, report = verify("--fail-fast", op=op)
    said = report.split("(copies)\n    AssertionError: ", 1)[1]
    lines = reproducer(report)
    with pytest.raises(AssertionError) as failure:
        exec(lines, {})
    assert said.startswith(str(failure.value).replace("\n", "\n    "))
    with mock.patch.object(ops, "temporal_shift", right):
        exec(lines, {})


@pytest.mark.parametrize("form", checks.FLOATS)
def test_known_cases_meet_every_dtype_layout_activation_and_width(form):
    shifts = [values["case"] for values in checks.known_cases(form, ("case",))]
    assert {case.dtype for case in shifts} >= {*DTYPES, torch.complex128, torch.uint8}
    layouts = {
        layout: {case.dtype.itemsize for case in shifts if case.layout == layout} for layout in CHANNEL_DIMS
    }
    assert all(sizes >= {1, 2, 4, 8} for sizes in layouts.values())
    assert {case.special for case in shifts if case.dtype == torch.int64} == {True, False}
    assert {case.width for case in shifts} == {1, 2, 3, 4, 5, 6, 8}

    computed = list(checks.known_cases(form, ("case", "activation", "c_out")))
    assert {values["case"].dtype for values in computed} == set(checks.FLOATS[form])
    for name in ACTIVATIONS:
        cases = [values["case"] for values in computed if values["activation"] == name]
        assert any(case.special and case.x.isnan().any() for case in cases)
        assert len({(case.n_first, case.n_second) for case in cases}) > 2
    for dtype in checks.FLOATS[form]:
        cases = [values["case"] for values in computed if values["case"].dtype == dtype]
        assert {values["c_out"] for values in computed if values["case"] in cases} == set(checks.C_OUT)
        assert {case.special for case in cases} == {False, True}
        assert {case.seed % 4 for case in cases} == {0, 1, 2, 3}  # bias and identity
    for cases in (shifts, [values["case"] for values in computed]):
        assert {(case.channels, case.reverse) for case in cases} == {*product((16, 20, 33), (False, True))}
    packed = [values["case"] for values in checks.known_cases(form, ("case",), packed=True)]
    assert {case.clip_lengths for case in packed} == {(2, 0, 1), (1, 3)}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda x, *_: x.dtype == torch.bool, id="bool"),
        pytest.param(lambda x, *_: x.dtype == torch.complex128, id="complex"),
        pytest.param(lambda x, *_: x.dim() == 2, id="vectors"),
        pytest.param(lambda x, *_: x.dim() == 5 and x.shape[3] > 1, id="volumes"),
        pytest.param(lambda x, *shift: shift[-1] == 2, id="channels between"),
        pytest.param(lambda x, *_: x.dtype == torch.int64 and x.dim() == 4, id="int64"),
    ],
)
def test_a_fault_of_one_kind_of_tensor_is_found_without_luck(verify, wrong):
    def shift(x: Tensor, *arguments) -> Tensor:
        return right(x, *arguments).flip(0) if wrong(x, *arguments) else right(x, *arguments)

    status, report = verify("--examples", "1", "--only", EXACT, op=shift)
    assert status == 1, report
    assert reproducer(report)


def test_fail_fast_stops_at_the_first_failure(verify):
    status, report = verify("--fail-fast", op=wrong_beyond_five_channels)
    assert status == 1
    assert report.count("\nFAIL ") == 1
    assert "\n0 checks passed, 1 failed, in " in report
    assert " checks were not run." in report
    _, report = verify(op=wrong_beyond_five_channels)
    assert report.count("\nFAIL ") > 1
    assert "not run" not in report


def test_only_some_checks_can_be_asked_for(verify, capsys):
    status, report = verify("--only", "shift keeps the memory format", "--only", "is linear copies")
    assert status == 0
    assert "\n2 checks passed, 0 failed, in " in report
    assert main(["verify", "--device", "cpu", "--only", "keeps no memory format"]) == 2
    assert "got --only 'keeps no memory format'" in capsys.readouterr().err


def test_the_seed_chooses_the_cases(verify):
    seen: list[list[tuple[int, ...]]] = []

    def recording(x: Tensor, *shift) -> Tensor:
        seen[-1].append((*x.shape, *shift))
        return right(x, *shift)

    for seed in "001":
        seen.append([])
        assert verify("--seed", seed, "--examples", "5", op=recording)[0] == 0
    assert seen[0] == seen[1] != seen[2]
    assert len(seen[0]) >= 5 * 7


def test_the_seed_chooses_the_weights_of_each_check(monkeypatch, capsys):
    drawn = []

    def draw() -> str:
        drawn.append(torch.rand(()).item())
        return "once"

    twice = [checks.Check("model", "draws its weights", "cpu", draw)] * 2
    monkeypatch.setattr(checks, "checks", lambda *_: twice)
    for seed in "34":
        assert main(["verify", "--device", "cpu", "--seed", seed]) == 0
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_what_it_cannot_do_is_said(capsys):
    for argv, message in (
        (("--examples", "0"), "--examples must be at least 1, got 0"),
        (("--device", "meta"), "expected a device that torch can use here, got 'meta'"),
    ):
        assert main(["verify", "--device", "cpu", *argv]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("form", checks.FORMS["cpu"])
def test_every_op_is_run(form):
    if form == "interpreter" and torch.cuda.is_available():
        pytest.skip("the kernels were compiled")
    run = set()

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            run.add(func.name())
            return func(*args, **(kwargs or {}))

    with Recording():
        for check in checks.checks("cpu", examples=3, start=0):
            if check.form == form and check.run.func is checks._hold:
                check.run()
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tsm_triton::")}
    assert {name for name in run if name.startswith("tsm_triton::")} == registered


@pytest.mark.slow
def test_compiling_trusts_no_graph_of_another_version(monkeypatch):
    """Inductor's cache knows an op by its name: it would hand out the backward of a package since mended."""

    def check() -> str:
        torch._dynamo.reset()
        return model_checks.compiles("cpu")

    with fresh_cache(), torch._functorch.config.patch(enable_autograd_cache=True):
        backward = staticmethod(lambda ctx, grad: (torch.zeros_like(grad), *[None] * 5))
        with monkeypatch.context() as broken:
            broken.setattr(
                import_module("tsm_triton.ops.temporal_shift")._TemporalShift, "backward", backward
            )
            check()  # eager and compiled, the two are wrong alike
        check()
