"""Mechanistic analysis of anticipatory recovery.

    preset(name)       settings by name          Settings      everything that decides a run
    fit(settings, out) train, and write a run    Run           a run directory, opened
    open_run(path)     open one                  Training      what is trained, and how far it is
    simulate(name, out) plant a truth, the same  across        several seeds, as one

`recovery_probe.analyze.analyze(run)` puts questions to it.

Plug-ins are classes: their fields are their settings.

    Recorder      watches training, writes arrays      Analysis   a question put to a run
    Intervention  changes training                     Schedule   which document when
    Source        documents                            Optimizer  how a gradient becomes an update
    Simulation    a process whose truth is known

Importing this takes no time, and opening runs imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recovery_probe.analyze.across import across
    from recovery_probe.analyze.analysis import Analysis
    from recovery_probe.analyze.estimate import Estimate
    from recovery_probe.config import changed, preset
    from recovery_probe.documents.source import Source, Text, Tokens
    from recovery_probe.errors import Damaged, Diverged, HookError, InputError, Interrupted, Missing
    from recovery_probe.interventions import Edit, Intervention
    from recovery_probe.interventions.edit import EditActivations
    from recovery_probe.interventions.freeze import Freeze
    from recovery_probe.interventions.mask import Mask
    from recovery_probe.interventions.project import Project
    from recovery_probe.moments import Episode, Step
    from recovery_probe.optimizers import Optimizer
    from recovery_probe.record.layout import EPISODE, STEP, Array
    from recovery_probe.record.run import Run, open_run
    from recovery_probe.recorders import Hook, Layout, Recorder
    from recovery_probe.recorders.points import Points
    from recovery_probe.schedules import Schedule
    from recovery_probe.settings import Settings
    from recovery_probe.simulations import Simulation
    from recovery_probe.simulations.writing import simulate
    from recovery_probe.testing import check_recorder
    from recovery_probe.train.fitting import fit
    from recovery_probe.train.plan import Point
    from recovery_probe.training import Training

_HOME = {
    "EPISODE": "record.layout",
    "STEP": "record.layout",
    "Analysis": "analyze.analysis",
    "Array": "record.layout",
    "Damaged": "errors",
    "Diverged": "errors",
    "Edit": "interventions",
    "EditActivations": "interventions.edit",
    "Episode": "moments",
    "Estimate": "analyze.estimate",
    "Freeze": "interventions.freeze",
    "Hook": "recorders",
    "HookError": "errors",
    "InputError": "errors",
    "Interrupted": "errors",
    "Intervention": "interventions",
    "Layout": "recorders",
    "Mask": "interventions.mask",
    "Missing": "errors",
    "Optimizer": "optimizers",
    "Point": "train.plan",
    "Points": "recorders.points",
    "Project": "interventions.project",
    "Recorder": "recorders",
    "Run": "record.run",
    "Schedule": "schedules",
    "Settings": "settings",
    "Simulation": "simulations",
    "Source": "documents.source",
    "Step": "moments",
    "Text": "documents.source",
    "Tokens": "documents.source",
    "Training": "training",
    "across": "analyze.across",
    "changed": "config",
    "check_recorder": "testing",
    "fit": "train.fitting",
    "open_run": "record.run",
    "preset": "config",
    "simulate": "simulations.writing",
}

__all__ = [
    "EPISODE",
    "STEP",
    "Analysis",
    "Array",
    "Damaged",
    "Diverged",
    "Edit",
    "EditActivations",
    "Episode",
    "Estimate",
    "Freeze",
    "Hook",
    "HookError",
    "InputError",
    "Interrupted",
    "Intervention",
    "Layout",
    "Mask",
    "Missing",
    "Optimizer",
    "Point",
    "Points",
    "Project",
    "Recorder",
    "Run",
    "Schedule",
    "Settings",
    "Simulation",
    "Source",
    "Step",
    "Text",
    "Tokens",
    "Training",
    "across",
    "changed",
    "check_recorder",
    "fit",
    "open_run",
    "preset",
    "simulate",
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
