"""One row from many places of the network."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from recovery_probe.recorders import Rows


class Points:
    """One row from many hook points, or other places: in the order of `keys`, whatever order they
    come in, and NaN where one gave nothing."""

    def __init__(self, keys: Iterable[Hashable]) -> None:
        self.keys = list(keys)
        self.values: dict[Hashable, Tensor] = {}

    def put(self, key: Hashable, value: Tensor) -> None:
        """Keep a copy: the network may go on to change what it showed."""
        self.values[key] = value.detach().clone()

    def row(self) -> Tensor | None:
        """(keys, …) of what came in since the last row; None for nothing at all."""
        if not self.values:
            return None
        blank = torch.full_like(next(iter(self.values.values())), math.nan)
        row = torch.stack([self.values.get(key, blank) for key in self.keys])
        self.values = {}
        return row

    def rows(self, name: str) -> Rows:
        """The row as what a recorder's moment returns."""
        row = self.row()
        return None if row is None else {name: row}
