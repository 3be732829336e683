"""Triton kernels and their launchers. Nothing here validates or differentiates: `tsm_triton.ops` does."""

if "." not in __name__:
    raise ImportError(
        f"expected the import `tsm_triton.kernels`, got `{__name__}`: the folder `kernels` at the top of "
        "the repository is only a link to it. Import tsm_triton.kernels instead."
    )
