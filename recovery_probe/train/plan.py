"""The runs to be made: a plan is a list of points."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from recovery_probe import config, plugins
from recovery_probe.errors import InputError, Missing
from recovery_probe.record import mends
from recovery_probe.record.folder import is_run
from recovery_probe.record.origin import origin
from recovery_probe.record.run import open_run
from recovery_probe.schedules import planned
from recovery_probe.settings import Settings

ROLES = ("run", "control", "twin")
TWIN: Final = "twin"


@dataclass(frozen=True)
class Begins:
    """What a run begins with: a checkpoint of another one."""

    run: Path
    episodes_done: int

    def told(self, path: Path) -> dict[str, Any]:
        """For the provenance of the run at `path`."""
        return {"run": os.path.relpath(self.run, path), "episodes_done": self.episodes_done}


@dataclass(frozen=True)
class Point:
    """A run to be made. Its `role` is `run`, `control` or `twin`: of the run before it in the plan.
    A twin is the same run from weights changed by one unit in the last place. It `begins` with
    weights of its own, or with another run's checkpoint."""

    path: Path
    settings: Settings
    role: Literal["run", "control", "twin"] = "run"
    begins: Begins | None = None


def with_controls(settings: Settings, out: Path, controls: Sequence[str]) -> list[Point]:
    """One run in `out`; or the run and what is named beside it, in folders of `out` called as their
    schedules are: controls, which differ in the schedule alone, by the names of their schedules,
    with settings or without (`shuffled`, `shuffled:keep_first=true`); and `twin`, its twin.

    Raises `InputError` for a control that would be the run itself, or is named twice.
    """
    kind = settings.schedule.kind
    if not controls or list(controls) == ["none"]:
        return [Point(out, settings)]
    plan = [Point(out / plugins.key_of(kind), settings)]
    for control in controls:
        if control == TWIN:
            plan.append(Point(out / TWIN, settings, TWIN))
            continue
        name, own = _with_settings(control)
        other = config.changed(settings, schedule={"kind": name, **own})
        if other.schedule == settings.schedule:
            raise InputError(
                f'schedule.kind = "{kind}" with control {control} would compare a {kind} run with '
                "itself; use --control none (control=None)"
            )
        folder = "-".join([plugins.key_of(name), *(f"{n}-{v}".lower() for n, v in own.items())])
        plan.append(Point(out / folder, other, "control"))
    return plan


def _with_settings(control: str) -> tuple[str, dict[str, Any]]:
    """The name of a schedule, and its settings behind a colon, as TOML writes them."""
    found = re.fullmatch(r"(.+?):(\w+=.+)", control)
    if not found:
        return control, {}
    try:
        return found[1], tomllib.loads(found[2].replace(",", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"control {control!r}: {error}: expected settings as shuffled:keep_first=true has them"
        ) from None


def check_plan(plan: Sequence[Point]) -> None:
    """Raise `InputError` for a plan of nothing, two runs in one place, or a control that is none:
    it differs from the run before it in its schedule, and in that alone. A twin differs in
    nothing. Every schedule is asked for its order, so that one that cannot be is known before the
    first run."""
    if not plan:
        raise InputError("a plan of no runs")
    run = None
    for i, point in enumerate(plan):
        if point.path.absolute() in (other.path.absolute() for other in plan[:i]):
            raise InputError(f"{point.path}: two runs of the plan in one place")
        if point.role not in ROLES:
            raise InputError(f"{point.path}: role = {point.role!r}: expected {', '.join(ROLES)}")
        planned(point.settings)
        if point.begins:
            check_begins(point, point.begins)
        if point.role == "run":
            run = point
            continue
        if run is None:
            raise InputError(f"{point.path}: a {point.role}, and no run before it in the plan")
        differing = config.differences(run.settings, point.settings, roles=("numbers",))
        if point.role == TWIN:
            if differing:
                raise InputError(
                    f"{point.path}: not a twin of {run.path}: they differ in {', '.join(differing)}"
                )
            continue
        others = [name for name in differing if not name.startswith("schedule.")]
        if others or not differing:
            what = f"beside the schedule they differ in {', '.join(others)}"
            raise InputError(
                f"{point.path}: not a control of {run.path}: "
                + (what if others else "its schedule is the same")
            )


def check_begins(point: Point, begins: Begins) -> None:
    """Raise `InputError` unless a run can begin there: of the same network and documents, trained
    in the same way. Its order may differ, how long it is, what changes training, when the
    optimizer starts again, and there may be more documents."""
    origin = open_run(begins.run)
    if begins.episodes_done not in origin.checkpoints:
        why = mends.no_checkpoint(origin.provenance, begins.episodes_done, origin.checkpoints)
        raise Missing(f"{begins.run}: {why}")
    if point.role != "run":
        raise InputError(f"{point.path}: a {point.role} begins with weights of its own")
    if point.settings.optimizer.decay != "none":
        raise InputError(
            f"{point.path}: its learning rate falls along the whole run (optimizer.decay), and "
            "what begins in the middle has no place in that"
        )
    before = config.resolved(origin.config)
    free = {plugins.key_of(n) for s in (before, point.settings) for n in s.interventions}
    free |= {"schedule", "interventions", "epochs"}
    differing = config.differences(before, point.settings, roles=("numbers",))
    others = [
        name
        for name in differing
        if name.partition(".")[0] not in free
        and name not in ("optimizer.reset", "documents.count", "seed.order")
    ]
    if others:
        raise InputError(
            f"{point.path}: cannot begin with a checkpoint of {begins.run}: they differ in "
            f"{', '.join(others)}"
        )


def begins_of(path: Path) -> Begins | None:
    """What the run that is there began with, if there is one, and it began with a checkpoint."""
    found = origin(open_run(path)) if is_run(path) else None
    return found and Begins(found[0].path, found[1])


def beside(plan: Sequence[Point], point: Point, role: str) -> list[Point]:
    """Those of a role that follow a run in the plan, up to the next run."""
    if point.role != "run":
        return []
    following = list(plan[plan.index(point) + 1 :])
    ends = [i for i, other in enumerate(following) if other.role == "run"]
    return [p for p in following[: ends[0] if ends else None] if p.role == role]
