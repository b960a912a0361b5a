"""Mechanistic analysis of anticipatory recovery.

    preset(name)       settings by name          Settings   everything that decides a run
    fit(settings, out) train, and write a run    Run        a run directory, opened
    open_run(path)     open one                  Analysis   a question put to a run
    across(datasets)   several seeds, as one     Recorder   watches training, writes arrays

Importing this, and opening runs, imports no torch.
"""

from typing import TYPE_CHECKING, Any

from recovery_probe.analysis import Analysis, across
from recovery_probe.config import Settings, preset
from recovery_probe.errors import Diverged, HookError, InputError
from recovery_probe.run import Run, open_run

if TYPE_CHECKING:
    from recovery_probe.recorders import Recorder
    from recovery_probe.train import fit

__all__ = [
    "Analysis",
    "Diverged",
    "HookError",
    "InputError",
    "Recorder",
    "Run",
    "Settings",
    "across",
    "fit",
    "open_run",
    "preset",
]


def __getattr__(name: str) -> Any:
    # These need torch.
    if name == "fit":
        from recovery_probe.train import fit

        return fit
    if name == "Recorder":
        from recovery_probe.recorders import Recorder

        return Recorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
