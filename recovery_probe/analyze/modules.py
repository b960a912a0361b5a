"""Groups of modules, and of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

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


# Of parameters, in the order in which they are shown.
KINDS = (
    "embedding",
    "attention QK",
    "attention OV",
    "MLP in",
    "MLP out",
    "norms",
    "unembedding",
    "biases",
    "rest",
)
# Of a module's TransformerLens name the pieces that say what it does in an attention or an MLP.
WITHIN = {
    "attention QK": {"q", "k"},
    "attention OV": {"v", "o"},
    "MLP in": {"in", "gate", "dense_in", "dense_gate", "up_proj", "gate_proj", "gate_up_proj"},
    "MLP out": {"out", "dense_out", "down_proj"},
}


def parameter_kinds(names: Iterable[str]) -> dict[str, list[str]]:
    """Kind -> parameters, by TransformerLens name, each in one kind: those of `KINDS` that are
    there. `norms` has their weights and biases, `biases` those of all else; an unembedding that is
    tied is an embedding."""
    return _sorted(names, _kind, KINDS)


def parameter_blocks(names: Iterable[str], most: int) -> dict[str, list[str]]:
    """`block 0` … and `outside blocks` -> parameters, by TransformerLens name. Of more blocks than
    `most` groups of consecutive ones, `blocks 0 to 4` …, at most so many; the last may be
    smaller."""
    names = list(names)
    blocks = sorted({b for name in names if (b := _block(name)) is not None})
    each = -(-len(blocks) // most)
    group: dict[int | None, str] = {None: "outside blocks"}
    for place, block in enumerate(blocks):
        first = place - place % each
        own = blocks[first : first + each]
        group[block] = f"block {block}" if len(own) == 1 else f"blocks {own[0]} to {own[-1]}"
    known = [*(group[block] for block in blocks), group[None]]
    return _sorted(names, lambda name: group[_block(name)], known)


def _sorted(
    names: Iterable[str], group: Callable[[str], str], known: Iterable[str]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {each: [] for each in known}
    for name in names:
        found[group(name)].append(name)
    return {each: own for each, own in found.items() if own}


def _block(name: str) -> int | None:
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def _kind(name: str) -> str:
    *path, last = name.split(".")
    if any(piece.startswith("ln") or piece.endswith("ln") or "norm" in piece for piece in path):
        return "norms"
    if last == "bias":
        return "biases"
    if path[0] in ("embed", "pos_embed", "unembed"):
        return "unembedding" if path[0] == "unembed" else "embedding"
    part = "attention" if "attn" in path else "MLP" if "mlp" in path else None
    pieces = {*path, last}
    own = [kind for kind, its in WITHIN.items() if part and kind.startswith(part) and pieces & its]
    return own[0] if own else "rest"
