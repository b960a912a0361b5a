"""Groups of modules."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def module_groups(modules: xr.DataArray, blocks: bool = False) -> dict[str, NDArray[np.bool_]]:
    """Name -> which entries of a `module` dimension: `total`, the kinds that are there among
    `embedding`, `attention`, `mlp`, `norms` and `unembedding`, and with `blocks` each block."""
    kind = modules["kind"].values.astype(str)
    block = modules["block"].values.astype(int)
    norms = np.char.startswith(np.array([k.rpartition(".")[2] for k in kind]), "ln") | (
        np.char.find(kind, "norm") >= 0
    )
    members = {
        "total": np.ones(len(kind), dtype=bool),
        "embedding": np.isin(kind, ["embed", "pos_embed"]),
        "attention": np.char.startswith(kind, "attn") & ~norms,
        "mlp": np.char.startswith(kind, "mlp") & ~norms,
        "norms": norms,
        "unembedding": kind == "unembed",
    }
    if blocks:
        members |= {f"block {b}": block == b for b in np.unique(block[block >= 0]).tolist()}
    return {name: which for name, which in members.items() if which.any()}
