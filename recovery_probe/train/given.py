"""Hooks and interventions that are given as objects, made what the loop takes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from recovery_probe import plugins
from recovery_probe.errors import InputError
from recovery_probe.interventions import Intervention
from recovery_probe.interventions.edit import EditActivations
from recovery_probe.recorders import Recorder
from recovery_probe.recorders.hook import HookRecorder


def as_recorder(hook: Any, during: Any = None) -> Recorder:
    """A recorder from what `fit` takes as a hook: (pattern, function), (name, pattern, function),
    a `Recorder` class, or a recorder, of which each run gets a copy."""
    if isinstance(hook, type) and issubclass(hook, Recorder):
        return plugins.made(hook, {}, hook.__name__)
    if isinstance(hook, Recorder):
        return copy.deepcopy(hook)
    if isinstance(hook, tuple) and len(hook) in (2, 3):
        *name, pattern, function = hook
        return HookRecorder(pattern, function, name=name[0] if name else None, during=during)
    raise InputError(
        f"hook {hook!r}: expected (pattern, function), (name, pattern, function), or a Recorder"
    )


def as_interventions(given: Iterable[Any]) -> list[Intervention]:
    """Interventions from what `fit` takes as such. Pairs of a pattern and a function are one
    `edit`, the last."""
    objects: list[Intervention] = []
    pairs = []
    for each in given:
        if isinstance(each, tuple) and len(each) == 2:
            pairs.append(each)
            continue
        if isinstance(each, type) and issubclass(each, Intervention):
            each = plugins.made(each, {}, each.__name__)
        if not isinstance(each, Intervention):
            raise InputError(
                f"intervention {each!r}: expected an Intervention, or (pattern, function)"
            )
        if not str(getattr(each, "name", "")).isidentifier():
            raise InputError(f"intervention {type(each).__name__} has no name: name = '...'")
        objects.append(each)
    return [*objects, *([EditActivations.of(pairs)] if pairs else [])]
