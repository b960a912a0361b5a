"""What to do where a run lacks something: replay it, unless no network was trained."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def simulated(provenance: Mapping[str, Any]) -> str:
    """The simulation that a run was drawn by; empty of one that was trained."""
    return str(provenance.get("simulated", {}).get("name", ""))


def recorder_off(path: Path, provenance: Mapping[str, Any], name: str, on: Sequence[str]) -> str:
    """Of a recorder that wrote nothing."""
    has = ", ".join(on) or "none"
    if drawn := simulated(provenance):
        return f"simulation {drawn} has no {name}; it has {has}: no network was trained"
    return f"recorder {name} was off, on were {has}; {replay(path, name)} adds it"


def replay(path: Path, recorder: str) -> str:
    """The command that records what was not."""
    return f"python -m recovery_probe.replay {shlex.quote(str(path))} --record {recorder}"


def tell_damaged(path: Path, checkpoints: Mapping[int, str]) -> None:
    """Of checkpoints that were passed over."""
    for done, wrong in checkpoints.items():
        print(
            f"note: {path}: the checkpoint after {done} episodes is damaged ({wrong}): an earlier "
            "one is used",
            file=sys.stderr,
        )


def verify(path: Path) -> str:
    """The command that says what is damaged, and remakes what can be."""
    return f"python -m recovery_probe.verify {shlex.quote(str(path))} --mend"


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """`torch 2.12 -> 2.13, host a -> b`: what has changed between two machines."""
    each = (f"{name} {before} -> {now}" for name, (before, now) in changed.items())
    return ", ".join(each) or "nothing that is recorded"


def no_checkpoint(provenance: Mapping[str, Any], episodes_done: int, known: Sequence[int]) -> str:
    """Of a checkpoint that is not there."""
    if drawn := simulated(provenance):
        return f"a run of the simulation {drawn} has no checkpoints: no network was trained"
    return (
        f"no checkpoint after {episodes_done} episodes; there are some after "
        f"{', '.join(map(str, known)) or 'none'}"
    )
