"""What to do where a run lacks something: train again, unless no network was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def simulated(provenance: Mapping[str, Any]) -> str:
    """The simulation that a run was drawn by; empty of one that was trained."""
    return str(provenance.get("simulated", {}).get("name", ""))


def recorder_off(provenance: Mapping[str, Any], name: str, on: Sequence[str]) -> str:
    """Of a recorder that wrote nothing."""
    has = ", ".join(on) or "none"
    if drawn := simulated(provenance):
        return f"simulation {drawn} has no {name}; it has {has}: no network was trained"
    return f"recorder {name} was off, on were {has}; train again with --record {name}"


def no_checkpoint(provenance: Mapping[str, Any], episodes_done: int, known: Sequence[int]) -> str:
    """Of a checkpoint that is not there."""
    if drawn := simulated(provenance):
        return f"a run of the simulation {drawn} has no checkpoints: no network was trained"
    return (
        f"no checkpoint after {episodes_done} episodes; there are some after "
        f"{', '.join(map(str, known)) or 'none'}"
    )
