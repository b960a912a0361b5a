"""The runs to be made: a plan is a list of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recovery_probe import config, plugins
from recovery_probe.errors import InputError
from recovery_probe.settings import Settings


@dataclass(frozen=True)
class Point:
    """A run to be made. Its `role` is `run`, or `control`: of the run before it in the plan."""

    path: Path
    settings: Settings
    role: Literal["run", "control"] = "run"


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


def check_plan(plan: Sequence[Point]) -> None:
    """Raise `InputError` for a plan of nothing, two runs in one place, or a control that is none:
    it differs from the run before it in its schedule, and in that alone."""
    if not plan:
        raise InputError("a plan of no runs")
    run = None
    for i, point in enumerate(plan):
        if point.path.absolute() in (other.path.absolute() for other in plan[:i]):
            raise InputError(f"{point.path}: two runs of the plan in one place")
        if point.role not in ("run", "control"):
            raise InputError(f"{point.path}: role = {point.role!r}: expected 'run' or 'control'")
        if point.role == "run":
            run = point
            continue
        if run is None:
            raise InputError(f"{point.path}: a control, and no run before it in the plan")
        differing = config.differences(run.settings, point.settings, roles=("numbers",))
        others = [name for name in differing if not name.startswith("schedule.")]
        if others or not differing:
            what = f"beside the schedule they differ in {', '.join(others)}"
            raise InputError(
                f"{point.path}: not a control of {run.path}: "
                + (what if others else "its schedule is the same")
            )


def controls_of(plan: Sequence[Point], point: Point) -> list[Point]:
    """The controls that follow a run in the plan."""
    if point.role != "run":
        return []
    following = list(plan[plan.index(point) + 1 :])
    ends = [i for i, other in enumerate(following) if other.role == "run"]
    return [p for p in following[: ends[0] if ends else None] if p.role == "control"]
