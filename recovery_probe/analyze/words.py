"""How numbers are said, in sentences and in JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from recovery_probe.analyze.groups import apart


def with_p(p: float) -> str:
    """`p = 0.02`."""
    return "p not defined" if np.isnan(p) else f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def number(value: Any) -> float | None:
    """A JSON number: NaN becomes null."""
    return None if np.isnan(value) else round(float(value), 6)


def by_run(
    dataset: xr.Dataset, clause: Callable[[xr.Dataset], str], form: str = "{run}: {clause}"
) -> list[str]:
    """What is to be said of each run of a dataset, with its name."""
    return [form.format(run=part.run.item(), clause=clause(part)) for part in apart(dataset)]
