"""What tsm_triton knows about other libraries: where their models' shift sites are."""

if "." not in __name__:
    raise ImportError(
        f"expected the import `tsm_triton.integrations`, got `{__name__}`: the folder `integrations` at "
        "the top of the repository is only a link to it. Import tsm_triton.integrations instead."
    )
