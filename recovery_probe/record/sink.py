"""What training writes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recovery_probe.record.layout import Array


class Sink(Protocol):
    """What rows and losses are written to: a run's `Writer`, or what stands in its place when a
    run is trained again."""

    def add_group(
        self,
        name: str,
        arrays: Mapping[str, Array],
        coords: Mapping[str, tuple[Any, Any]],
        due: Mapping[Any, NDArray[np.int64]],
        attrs: Mapping[str, Any],
    ) -> None: ...

    def write(self, recorder: str, name: str, start: int, rows: NDArray[Any]) -> None: ...

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None: ...


class Unwritten:
    """A sink for what is trained to see its losses alone, which `Training` holds: nothing is
    written."""

    def add_group(
        self,
        name: str,
        arrays: Mapping[str, Array],
        coords: Mapping[str, tuple[Any, Any]],
        due: Mapping[Any, NDArray[np.int64]],
        attrs: Mapping[str, Any],
    ) -> None:
        """Nothing is recorded."""

    def write(self, recorder: str, name: str, start: int, rows: NDArray[Any]) -> None:
        """Nothing is recorded."""

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        """Nothing is recorded."""
