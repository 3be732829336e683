"""What the compiler makes of every kernel variant, for each architecture, without a GPU."""

import pytest

from tsm_triton.kernels import temporal_shift as kernel

from .codegen import TARGETS, compile_kernel

# element type -> elements of a 16-byte vector
VECTORS = {"*i8": 16, "*i16": 8, "*i32": 4, "*i64": 2}


def shift_arguments(
    pointer: str, vec: int, single_row: bool, folds_aligned: bool, reverse: bool, packed: bool = False
) -> dict:
    integers = ("num_segments", "frame_size", "row_size", "first_end", "second_end")
    strides = ("stride_x_frame", "stride_x_row")
    return {
        "x_ptr": pointer,
        "boundaries_ptr": "*u8" if packed else None,
        "out_ptr": pointer,
        **dict.fromkeys((*integers, *strides), "i32"),
        "VEC": vec,
        "BLOCK": kernel.BLOCK if folds_aligned else kernel.STRADDLING_BLOCK,
        "SINGLE_ROW": single_row,
        "FOLDS_ALIGNED": folds_aligned,
        "REVERSE": reverse,
        "PACKED": packed,
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pointer", VECTORS)
@pytest.mark.parametrize("single_row", [True, False], ids=["single_row", "rows"])
@pytest.mark.parametrize("folds_aligned", [True, False], ids=["aligned", "straddling"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_shift_moves_128_bits_an_access_and_spills_nothing(
    target, pointer, single_row, folds_aligned, reverse
):
    arguments = shift_arguments(pointer, VECTORS[pointer], single_row, folds_aligned, reverse)
    code = compile_kernel(kernel._temporal_shift_kernel, target, arguments, kernel.NUM_WARPS)
    assert set(code.loads) == set(code.stores) == {128}
    # one load a store, or one from each of the three groups: nothing is read twice
    assert len(code.loads) == len(code.stores) * (1 if folds_aligned else 3)
    assert code.spills == 0
    # 64 registers leave room for 8 programs of 4 warps on an NVIDIA multiprocessor
    assert code.registers <= (64 if target == "gfx942" or not folds_aligned else 40)


@pytest.mark.parametrize("target", TARGETS)
def test_an_unaligned_tensor_still_compiles_to_plain_accesses(target):
    arguments = shift_arguments("*i16", 1, True, True, False)
    code = compile_kernel(kernel._temporal_shift_kernel, target, arguments, kernel.NUM_WARPS)
    assert set(code.loads) == set(code.stores) == {16}
    assert code.spills == 0


def test_narrow_accesses_are_seen():
    # the check above can fail: without a hint of its alignment a pointer gets no wide access
    arguments = shift_arguments("*i16", 8, True, True, False)
    arguments["VEC"] = 2
    code = compile_kernel(kernel._temporal_shift_kernel, "sm_90", arguments, kernel.NUM_WARPS)
    assert set(code.loads) == {32}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("folds_aligned", [True, False], ids=["aligned", "straddling"])
def test_the_packed_shift_adds_two_bytes_to_each_program(target, folds_aligned):
    arguments = shift_arguments("*i16", 8, False, folds_aligned, False, packed=True)
    code = compile_kernel(kernel._temporal_shift_kernel, target, arguments, kernel.NUM_WARPS)
    assert sum(width for width in code.loads if width != 128) == 16
    assert set(code.stores) == {128}
    assert code.spills == 0
