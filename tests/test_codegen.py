"""What the compiler makes of every kernel variant, for each architecture, without a GPU."""

import pytest
import triton.language as tl
from triton.compiler.errors import CompilationError

from tsm_triton.activations import ACTIVATIONS
from tsm_triton.kernels import activations, depthwise, stem
from tsm_triton.kernels import residual_shift as residual
from tsm_triton.kernels import shift_conv1x1 as convolution
from tsm_triton.kernels import shift_conv1x1_tma as copy_engine
from tsm_triton.kernels import temporal_shift as kernel

from .codegen import TARGETS, Code, compile_kernel

# element type -> elements of a 16-byte vector
VECTORS = {"*i8": 16, "*i16": 8, "*i32": 4, "*i64": 2}


def shift_arguments(
    pointer: str,
    vec: int,
    single_row: bool,
    folds_aligned: bool,
    reverse: bool,
    packed: bool = False,
    int64: bool = False,
) -> dict:
    integers = ("num_segments", "frame_size", "row_size", "first_end", "second_end")
    strides = ("stride_x_frame", "stride_x_row")
    return {
        "x_ptr": pointer,
        "boundaries_ptr": "*u8" if packed else None,
        "out_ptr": pointer,
        **dict.fromkeys((*integers, *strides), "i64" if int64 else "i32"),
        "VEC": vec,
        "BLOCK": kernel.BLOCK,
        "SINGLE_ROW": single_row,
        "FOLDS_ALIGNED": folds_aligned,
        "REVERSE": reverse,
        "PACKED": packed,
        "INT64": int64,
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pointer", VECTORS)
@pytest.mark.parametrize("single_row", [True, False], ids=["single_row", "rows"])
@pytest.mark.parametrize("folds_aligned", [True, False], ids=["aligned", "straddling"])
def test_the_shift_moves_128_bits_an_access_and_spills_nothing(target, pointer, single_row, folds_aligned):
    # each way with half of the rest: a compilation and its disassembly take a second
    reverse = single_row ^ folds_aligned ^ (pointer in ("*i8", "*i32"))
    arguments = shift_arguments(pointer, VECTORS[pointer], single_row, folds_aligned, reverse)
    code = compile_kernel(kernel._temporal_shift_kernel, target, arguments, kernel.NUM_WARPS)
    assert set(code.loads) == set(code.stores) == {128}
    # one load a store, or one from each of the three groups: nothing is read twice
    assert len(code.loads) == len(code.stores) * (1 if folds_aligned else 3)
    assert code.spills == 0
    # 64 registers leave room for 8 programs of 4 warps on an NVIDIA multiprocessor
    assert code.registers <= (64 if target == "gfx942" or not folds_aligned else 40)


def check_shift(target: str, width: int, arguments: dict) -> None:
    code = compile_kernel(kernel._temporal_shift_kernel, target, arguments, kernel.NUM_WARPS)
    assert set(code.loads) == set(code.stores) == {width}
    assert code.spills == 0


@pytest.mark.parametrize("target", TARGETS)
def test_an_unaligned_tensor_still_compiles_to_plain_accesses(target):
    check_shift(target, 16, shift_arguments("*i16", 1, True, True, False))


@pytest.mark.parametrize("target", TARGETS)
def test_rows_that_are_no_whole_vectors_are_moved_by_their_largest_part(target):
    # of 4 elements here, with folds that end inside one
    check_shift(target, 64, shift_arguments("*i16", 4, False, False, False))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("folds_aligned", [True, False], ids=["aligned", "straddling"])
def test_frames_above_two_to_the_31_elements_compile_to_wide_accesses(target, folds_aligned):
    check_shift(target, 128, shift_arguments("*i16", 8, False, folds_aligned, False, int64=True))


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


def residual_arguments(function, target: str, pointer: str, vec: int, **variant) -> dict:
    arguments = {name: pointer if name.endswith("_ptr") else "i32" for name in function.arg_names}
    constants = {"CHANNELS_LAST": True, "WHOLE_CHANNELS": True, "FOLDS_ALIGNED": True, "REVERSE": False}
    forward = function is residual._residual_shift_kernel
    constants |= {"GATHER": False} if forward else {}
    # 4 warps are 256 threads on AMD
    block = residual.BLOCK if forward and target != "gfx942" else residual.WIDE_BLOCK
    constants |= {"VEC": vec, "BLOCK": block, "scale_ptr": "*fp32", "bias_ptr": "*fp32"}
    if not forward:
        constants["DERIVED_FROM"] = tl.constexpr(ACTIVATIONS[variant["ACTIVATION"].value].reads)
    return arguments | constants | variant


def vectors_a_thread(arguments: dict, target: str) -> int:
    return arguments["BLOCK"] // (residual.NUM_WARPS * (64 if target == "gfx942" else 32))


RESIDUAL_KERNELS = {
    "forward": residual._residual_shift_kernel,
    "backward": residual._residual_shift_backward_kernel,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("pointer", "vec"), [("*bf16", 8), ("*fp32", 4)], ids=["bf16", "fp32"])
@pytest.mark.parametrize("direction", RESIDUAL_KERNELS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_residual_shift_moves_128_bits_an_access_and_spills_nothing(
    target, pointer, vec, direction, activation
):
    function = RESIDUAL_KERNELS[direction]
    arguments = residual_arguments(function, target, pointer, vec, ACTIVATION=tl.constexpr(activation))
    code = compile_kernel(function, target, arguments, residual.NUM_WARPS)
    assert set(code.loads) == set(code.stores) == {128}
    # two stores a vector: y and its shift, or the two gradients
    assert len(code.stores) == 2 * vectors_a_thread(arguments, target)
    assert code.spills == 0
    # 80 leave room for 6 programs of 4 warps, which is 48 KiB in flight on an NVIDIA multiprocessor
    assert code.registers <= 80


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("direction", RESIDUAL_KERNELS)
def test_the_residual_shift_reads_each_input_once(target, direction):
    function = RESIDUAL_KERNELS[direction]
    plain = {"scale_ptr": None, "bias_ptr": None, "ACTIVATION": tl.constexpr("relu")}
    arguments = residual_arguments(function, target, "*bf16", 8, **plain)
    code = compile_kernel(function, target, arguments, residual.NUM_WARPS)
    vectors = vectors_a_thread(arguments, target)
    # branch and identity in, y and its shift out; y and two gradients in, one gradient out
    loads, stores = (2, 2) if direction == "forward" else (3, 1)
    assert code.loads == (128,) * loads * vectors
    assert code.stores == (128,) * stores * vectors


@pytest.mark.parametrize("target", TARGETS)
def test_the_gather_reads_moved_vectors_twice_and_stays_wide(target):
    function = residual._residual_shift_kernel
    variant = {"GATHER": True, "BLOCK": residual.WIDE_BLOCK, "ACTIVATION": tl.constexpr("relu")}
    arguments = residual_arguments(function, target, "*bf16", 8, **variant)
    code = compile_kernel(function, target, arguments, residual.NUM_WARPS)
    vectors = vectors_a_thread(arguments, target)
    # fp32 scale and bias, two accesses each, the two inputs twice
    assert code.loads == (128,) * 8 * vectors
    assert code.stores == (128,) * 2 * vectors
    assert code.spills == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("direction", RESIDUAL_KERNELS)
def test_only_vectors_that_a_fold_cuts_are_moved_by_element(target, direction):
    function = RESIDUAL_KERNELS[direction]
    variant = {"FOLDS_ALIGNED": False, "ACTIVATION": tl.constexpr("silu")}
    code = compile_kernel(
        function, target, residual_arguments(function, target, "*bf16", 8, **variant), residual.NUM_WARPS
    )
    wide, narrow = (code.loads, code.stores) if direction == "forward" else (code.stores, code.loads)
    assert set(wide) == {128}
    assert set(narrow) == {128, 16}
    assert code.spills == 0
    # 128 leave room for 4 programs of 4 warps
    assert code.registers <= 128


def convolution_arguments(
    pointer: str, c_in: int, c_out: int, fold: int, config, precision="ieee", stream=False
) -> dict:
    names = convolution._shift_conv1x1_kernel.arg_names
    arguments = {name: pointer if name.endswith("_ptr") else "i32" for name in names}
    # bias loads, a few bytes a program, take whatever width the matrix unit's layout gives
    constants = {"bias_ptr": None, "C_IN": c_in, "C_OUT": c_out, "FIRST_END": fold, "SECOND_END": 2 * fold}
    constants |= {"REVERSE": False, "GROUP_M": convolution.GROUP_M, **config.kwargs}
    constants |= {"ACTIVATION": tl.constexpr("relu"), "PRECISION": tl.constexpr(precision)}
    constants |= {} if stream else {"cache_ptr": None, "kept_ptr": None}
    return arguments | constants


def check_products(code: Code, target: str) -> None:
    # the matrix units of gfx942 leave 4 results side by side, which half precision moves in 64 bits
    results = {64, 128} if target == "gfx942" else {128}
    assert 128 in code.loads
    assert set(code.loads) <= results
    assert set(code.stores) <= results
    assert code.spills == 0


def check_convolution(target: str, arguments: dict, config) -> None:
    function = convolution._shift_conv1x1_kernel.fn
    code = compile_kernel(function, target, arguments, config.num_warps, config.num_stages)
    check_products(code, target)
    assert code.registers <= 255


CONFIGS = {f"{config.kwargs['BLOCK_M']}x{config.kwargs['BLOCK_N']}": config for config in convolution.CONFIGS}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("pointer", "tile"),
    [(pointer, tile) for pointer in ("*bf16", "*fp32") for tile in CONFIGS],
)
def test_the_convolution_reads_128_bits_an_access_and_spills_nothing(target, tile, pointer):
    # TF32 is left to NVIDIA's torch; folds of 32 channels end inside a block of 64
    precision = "ieee" if target == "gfx942" or pointer == "*bf16" else "tf32"
    arguments = convolution_arguments(pointer, 256, 128, 32, CONFIGS[tile], precision)
    check_convolution(target, arguments, CONFIGS[tile])


@pytest.mark.parametrize("tile", CONFIGS)
def test_no_tile_spills_where_all_channels_are_one_block(tile):
    # with a bias too: ptxas once spilled 8 bytes of 64x64 here, though it had registers left
    config = CONFIGS[tile]
    arguments = convolution_arguments("*bf16", 64, 128, 8, config) | {"bias_ptr": "*bf16"}
    function = convolution._shift_conv1x1_kernel.fn
    code = compile_kernel(function, "sm_100", arguments, config.num_warps, config.num_stages)
    assert code.spills == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pointer", ["*bf16", "*fp16"])
def test_folds_of_a_vector_keep_the_reads_wide(target, pointer):
    config = convolution.CONFIGS[0]
    check_convolution(target, convolution_arguments(pointer, 64, 64, 8, config), config)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tile", ["64x64", "64x256"])
def test_the_convolution_of_a_stream_stays_wide_and_spills_nothing(target, tile):
    arguments = convolution_arguments("*bf16", 256, 128, 32, CONFIGS[tile], stream=True)
    check_convolution(target, arguments, CONFIGS[tile])


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_convolution_spills_nothing_in_full_fp32(target):
    config = CONFIGS["128x128"]
    check_convolution(target, convolution_arguments("*fp32", 256, 128, 32, config), config)


@pytest.mark.parametrize("target", TARGETS)
def test_the_convolution_spills_nothing_in_fp64(target):
    config = convolution.FLOAT64_CONFIG
    check_convolution(target, convolution_arguments("*fp64", 256, 128, 32, config), config)


# C_IN, C_OUT, fold, whether a residual is added: shapes of ResNet-50 that take each of its tiles
COPIED = {"256": (256, 128, 32, False), "512": (512, 128, 64, False), "wide": (512, 256, 64, False)}
COPIED |= {"added": (128, 512, 0, True)}


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
@pytest.mark.parametrize("shape", COPIED.values(), ids=COPIED)
def test_the_copy_engine_feeds_the_matrix_units(target, shape):
    c_in, c_out, fold, added = shape
    tile = copy_engine.tile_for(c_in, c_out, 32, 8 * 28 * 28, added, 132)
    assert tile is not None
    block_k = copy_engine.fold_block(fold, 2 * fold)
    rows, columns = tile.BLOCK_M, tile.BLOCK_N
    arguments = {
        "x_d": f"tensordesc<bf16[1, {rows}, {block_k}]>",
        "weight_d": f"tensordesc<bf16[{columns}, {block_k}]>",
        "bias_ptr": "*bf16",
        "identity_ptr": "*bf16" if added else None,
        "out_d": f"tensordesc<bf16[1, {rows}, {columns}]>",
        **dict.fromkeys(("tiles", "clip_rows", "pixels"), "i32"),
        **{"C_IN": c_in, "C_OUT": c_out, "FIRST_END": fold, "SECOND_END": 2 * fold, "REVERSE": False},
        **{"ACTIVATION": tl.constexpr("relu"), "PERSISTENT": tile.PERSISTENT},
        **{"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": block_k},
    }
    function = copy_engine._shift_conv1x1_tma_kernel
    code = compile_kernel(function, target, arguments, tile.num_warps, tile.num_stages)
    assert code.spills == 0
    assert {"UTMALDG", "UTMASTG", "HGMMA" if target == "sm_90" else "UTCHMMA"} <= code.opcodes
    if added:
        assert 128 in code.loads


# kernel, C_OUT, persistent, which runs where the copy engine is alone
STEMS = [(7, 64, False, target) for target in TARGETS]
STEMS += [(size, c_out, True, target) for size, c_out in ((7, 64), (3, 32)) for target in ("sm_90", "sm_100")]


@pytest.mark.parametrize(("size", "c_out", "persistent", "target"), STEMS)
def test_the_stem_reads_four_values_an_access_and_spills_nothing(size, c_out, persistent, target):
    lead, block_k, block_c = stem.sizes(3, c_out, size, 2, size // 2)
    tile = stem.tile_for(size, block_k, block_c, 2, persistent)
    arguments = {
        **dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16"),
        **{"total": "i32", "H": 224, "W": 224, "C": 3, "OH": 112, "OW": 112, "C_OUT": c_out, "KH": size},
        **{"STRIDE": 2, "PADDING": size // 2, "LEAD": lead, "PAIR": stem.PAIR},
        **{"BLOCK_C": block_c, "BLOCK_K": block_k, "BLOCK_M": tile.BLOCK_M, "KERNEL_ROWS": tile.KERNEL_ROWS},
        **{"PERSISTENT": tile.PERSISTENT > 0},
        **{"ACTIVATION": tl.constexpr("relu"), "PRECISION": tl.constexpr("ieee")},
    }
    code = compile_kernel(stem._stem_kernel, target, arguments, tile.num_warps, 1)
    # a run begins at 8 bytes; the weights are read by vectors
    assert code.spills == 0
    assert 64 in code.loads
    assert set(code.stores) == {64 if target == "gfx942" else 128}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_depthwise_convolution_moves_128_bits_an_access_and_spills_nothing(target, stride):
    side = 56
    tile = depthwise.tile_for(96, side // stride, side // stride, stride, 2)
    arguments = {
        **dict.fromkeys(("x_ptr", "weight_ptr", "out_ptr"), "*bf16"),
        "bias_ptr": None,
        **{"H": side, "W": side, "C": 96, "OH": side // stride, "OW": side // stride, "KH": 3, "KW": 3},
        **{
            "STRIDE": stride,
            "PADDING_H": 1,
            "PADDING_W": 1,
            "DILATION": 1,
            **tile._asdict(),
            "ROLLING": True,
        },
        "ACTIVATION": tl.constexpr("relu6"),
    }
    code = compile_kernel(depthwise._depthwise_kernel, target, arguments, depthwise.NUM_WARPS)
    assert set(code.loads) == set(code.stores) == {128}
    assert code.spills == 0


@pytest.mark.parametrize("function", [activations.activate, activations.activation_backward])
def test_an_unknown_activation_does_not_compile(function):
    arguments = dict.fromkeys(function.arg_names, "fp32") | {"ACTIVATION": tl.constexpr("gelu")}
    with pytest.raises(CompilationError, match="unknown activation"):
        compile_kernel(function, "sm_90", arguments)
