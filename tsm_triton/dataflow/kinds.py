"""The kinds of ATen ops that the finder tells apart, by name without namespace and overload."""

VIEWS = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "clone", "contiguous", "detach", "dropout",
    "expand", "lift_fresh", "native_dropout", "permute", "reshape", "squeeze", "t", "transpose", "unflatten",
    "unsqueeze", "view",
}  # fmt: skip
PARTS = {
    "as_strided", "gather", "index", "index_select", "narrow", "select", "slice", "split", "split_with_sizes",
    "unbind",
}  # fmt: skip
SELECTIONS = PARTS | {"constant_pad_nd", "flip", "roll"}
SCALES = {"add", "cat", "copy", "div", "mul", "sub"}  # with one operand that depends on the input
POOLS = {
    "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices",
    "mean", "pixel_unshuffle", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d",
}  # fmt: skip
PROJECTIONS = {"addmm", "baddbmm", "bmm", "convolution", "linear", "mm"}
BATCH_NORMS = {
    "_batch_norm_no_update", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "native_batch_norm",
}  # fmt: skip
NORMS = BATCH_NORMS | {"native_group_norm", "native_layer_norm", "_fused_rms_norm", "rms_norm"}
ACTIVATIONS = {
    "celu", "clamp", "clamp_min", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish",
    "prelu", "_prelu_kernel", "relu", "relu6", "sigmoid", "silu", "softplus", "tanh",
}  # fmt: skip
LINEAR = VIEWS | SELECTIONS | SCALES | POOLS | PROJECTIONS | BATCH_NORMS
