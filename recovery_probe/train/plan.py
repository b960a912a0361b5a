"""The runs to be made: a plan is a list of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recovery_probe import config, plugins
from recovery_probe.errors import InputError
from recovery_probe.settings import Settings


@dataclass(frozen=True)
class Point:
    """A run to be made. Its `role` is `run`, or `control`: of the run before it in the plan."""

    path: Path
    settings: Settings
    role: str = "run"


def with_control(settings: Settings, out: Path, control: str | None) -> list[Point]:
    """One run in `out`; or, with the name of another schedule, the run and its control, which
    differs in the schedule alone, in folders of `out` that are called as their schedules are.

    Raises `InputError` for a control that would be the run itself.
    """
    kind = settings.schedule.kind
    if control in (None, "none"):
        return [Point(out, settings)]
    if control == kind:
        raise InputError(
            f'schedule.kind = "{kind}" with control {control} would compare a {kind} run with '
            "itself; use --control none (control=None)"
        )
    other = config.changed(settings, **{"schedule.kind": control})
    names = [plugins.key_of(name) for name in (kind, str(control))]
    return [Point(out / names[0], settings), Point(out / names[1], other, "control")]


def controls_of(plan: Sequence[Point], point: Point) -> list[Point]:
    """The controls that follow a run in the plan."""
    if point.role != "run":
        return []
    following = list(plan[plan.index(point) + 1 :])
    ends = [i for i, other in enumerate(following) if other.role == "run"]
    return [p for p in following[: ends[0] if ends else None] if p.role == "control"]
