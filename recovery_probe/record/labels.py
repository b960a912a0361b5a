"""Names for the places of an array: which module, which document, which epoch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core.indexing import IndexSelResult

ABOUT = {
    "step": "gradient step, from the start of the run; first is 0",
    "episodes_done": "episodes that training has behind it; 0 is before any",
    "episode": "episode, from the start of the run; first is 0",
    "epoch": "pass over the documents; first is 1",
    "document": "document, in the order of the cycle; held-out ones come last",
    "position": "place in a document, in tokens; first is 0",
    "name": "module, by its TransformerLens name",
    "watched": "whether the recorder watches the document",
    "kind": "module, without the number of its block",
    "block": "block of the network; -1 for a module outside of any",
    "other": "the other document of a pair",
    "layer": "0 before block 0, i after block i - 1",
    "head": "attention head of the block",
    "hook_point": "hook point, by its TransformerLens name",
    "token": "text of the token",
}


NUMBERED = ("document", "other", "position", "layer", "block", "head")  # dimensions, from 0


class Labels(xr.Index):
    """Several names for the places along one dimension: `.sel(kind="mlp.out", block=3)` gives the
    places where all of them match, in order. The names stay ordinary coordinates, which any file
    format can hold (a pandas MultiIndex cannot be saved)."""

    def __init__(self, dimension: Hashable, values: Mapping[Hashable, NDArray[Any]]) -> None:
        self.dimension, self.values = dimension, dict(values)

    @classmethod
    def from_variables(cls, variables: Mapping[Any, Any], *, options: Mapping[str, Any]) -> Self:
        ((dimension,),) = {v.dims for v in variables.values()}
        return cls(dimension, {name: v.values for name, v in variables.items()})

    def create_variables(self, variables: Mapping[Any, Any] | None = None) -> dict[Any, Any]:
        attrs = {n: v.attrs for n, v in (variables or {}).items()}
        return {n: xr.Variable((self.dimension,), v, attrs.get(n)) for n, v in self.values.items()}

    def sel(self, labels: dict[Any, Any], **_: Any) -> IndexSelResult:
        """Raises `KeyError` where nothing matches."""
        match = np.logical_and.reduce([np.isin(self.values[n], v) for n, v in labels.items()])
        if not match.any():
            raise KeyError(f"nothing along {self.dimension} has {labels}")
        return IndexSelResult({self.dimension: np.flatnonzero(match)})

    def isel(self, indexers: Mapping[Any, Any]) -> Self | None:
        if self.dimension not in indexers:
            return self
        places: Any = indexers[self.dimension]
        places = places.values if isinstance(places, xr.Variable) else places
        if not isinstance(places, slice) and np.ndim(places) == 0:
            return None  # a single place has its names as they are
        return type(self)(self.dimension, {n: v[places] for n, v in self.values.items()})

    def equals(self, other: xr.Index, *, exclude: frozenset[Hashable] | None = None) -> bool:
        return isinstance(other, Labels) and {n: v.tolist() for n, v in self.values.items()} == {
            n: v.tolist() for n, v in other.values.items()
        }
