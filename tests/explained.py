"""What `mechanism` makes of what its parts found."""

from __future__ import annotations

import xarray as xr
from recovery_probe_analyses.mechanism import READ

from recovery_probe.experiments.rules import RULES, together


def said(hypothesis: str, **parts: xr.Dataset) -> str:
    """The word on an explanation, by the predictions that these parts measure: their names, and
    what they found."""
    words = []
    for rule, read in zip(RULES, READ, strict=True):
        if rule.hypothesis == hypothesis and rule.part in parts:
            found, _ = read(parts[rule.part])
            assert found.low is not None
            words.append(rule.decide(float(found.low), float(found.high)))
    return together(words)
