"""Mechanistic analysis of anticipatory recovery.

    preset(name)       settings by name          Settings   everything that decides a run
    fit(settings, out) train, and write a run    Run        a run directory, opened
    open_run(path)     open one                  Analysis   a question put to a run
    across(datasets)   several seeds, as one     Recorder   watches training, writes arrays

Importing this takes no time, and opening runs imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recovery_probe.analyze.across import across
    from recovery_probe.analyze.analysis import Analysis
    from recovery_probe.config import Settings, preset
    from recovery_probe.errors import Damaged, Diverged, HookError, InputError, Interrupted, Missing
    from recovery_probe.recorders import EPISODE, STEP, Array, Hook, Layout, Points, Recorder
    from recovery_probe.run import Run, open_run
    from recovery_probe.testing import check_recorder
    from recovery_probe.train import fit

_HOME = {
    "EPISODE": "recorders",
    "STEP": "recorders",
    "Analysis": "analyze.analysis",
    "Array": "recorders",
    "Damaged": "errors",
    "Diverged": "errors",
    "Hook": "recorders",
    "HookError": "errors",
    "InputError": "errors",
    "Interrupted": "errors",
    "Layout": "recorders",
    "Missing": "errors",
    "Points": "recorders",
    "Recorder": "recorders",
    "Run": "run",
    "Settings": "config",
    "across": "analyze.across",
    "check_recorder": "testing",
    "fit": "train",
    "open_run": "run",
    "preset": "config",
}

__all__ = [
    "EPISODE",
    "STEP",
    "Analysis",
    "Array",
    "Damaged",
    "Diverged",
    "Hook",
    "HookError",
    "InputError",
    "Interrupted",
    "Layout",
    "Missing",
    "Points",
    "Recorder",
    "Run",
    "Settings",
    "across",
    "check_recorder",
    "fit",
    "open_run",
    "preset",
]


def __getattr__(name: str) -> Any:
    """Each name from its home, when it is first asked for: some need torch, which takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
