"""`fit`: runs trained as planned, and written."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from recovery_probe import config, plugins
from recovery_probe.errors import Diverged, InputError, Interrupted
from recovery_probe.interventions import Intervention, acting
from recovery_probe.interventions.acting import Interventions
from recovery_probe.interventions.edit import EditActivations
from recovery_probe.machine import device_name, reproducible, threads, uninterrupted
from recovery_probe.record.folder import as_path, is_run
from recovery_probe.record.run import Run, open_run
from recovery_probe.record.writer import Writer, check_vacant
from recovery_probe.recorders import Recorder
from recovery_probe.recorders import recording as recorders
from recovery_probe.recorders.hook import HookRecorder
from recovery_probe.recorders.recording import Recording
from recovery_probe.settings import Settings
from recovery_probe.train.announce import announce
from recovery_probe.train.loop import train
from recovery_probe.train.plan import TWIN, Point, beside, check_plan, with_controls
from recovery_probe.train.progress import Progress
from recovery_probe.training import Training


def fit(
    settings: Settings | Sequence[Point],
    out: str | os.PathLike[str] | None = None,
    *,
    control: str | Sequence[str] | None = None,
    interventions: Iterable[Any] = (),
    hooks: Iterable[Any] = (),
    hook_during: str | None = None,
    overwrite: bool = False,
    exist_ok: bool = False,
    force: bool = False,
) -> Run:
    """Train as the settings say and return the run, written in the directory `out`.

    With `control`, the name of another schedule (`shuffled`, `shuffled:keep_first=true`) or
    several, `out` gets one folder per schedule, `out/cyclic` and `out/shuffled`, and the cyclic run
    is returned; `run.controls` holds the others. `twin` among them is the run again, from weights
    changed by one unit in the last place: `run.twins`.
    Instead of settings, a plan of any number of runs, made in this order: the first is returned.

    `interventions` change training, after those that the settings name: objects, of which each run
    gets a copy, or pairs of a hook-point pattern and a TransformerLens hook function that returns
    an activation to go on with (the intervention `edit`).

    `hooks` are recorded beside what `settings.recorders` names: pairs of a hook-point pattern and
    a TransformerLens hook function, triples with a name before them, or `Recorder` classes. A
    function sees the passes of `hook_during` (`training`, `evaluation` or `both`; training when
    not said).

    Raises `InputError`, before any training, when the settings cannot be met, `out` is taken
    (`overwrite` replaces a run, and nothing else; `exist_ok` opens the run when it is a complete
    one of the same settings, and trains nothing) or the disk has no room (`force` tries all the
    same); `Diverged` or `HookError` when training fails and `Interrupted`, a `KeyboardInterrupt`,
    when it is stopped, with the record up to there kept.
    """
    given, hooks = as_interventions(interventions), list(hooks)
    plan = _planned(settings, out, control, given)
    if exist_ok and all(is_run(point.path) for point in plan):
        return _same(plan, [str(as_recorder(hook, hook_during)) for hook in hooks])
    for point in plan:
        check_vacant(point.path, overwrite)
    with threads(plan[0].settings.threads):
        for point in plan:
            # Recorders and interventions have a state: each run gets its own.
            extra = [as_recorder(hook, hook_during) for hook in hooks]
            own = [copy.deepcopy(intervention) for intervention in given]
            facts = {
                "role": point.role,
                **{
                    f"{role}s": [
                        os.path.relpath(other.path, point.path)
                        for other in beside(plan, point, role)
                    ]
                    for role in ("control", TWIN)
                },
                "outcome": config.declared(point.settings),
            }
            _fit(point, own, extra, facts, overwrite, force)
    return open_run(plan[0].path)


def _planned(
    settings: Settings | Sequence[Point],
    out: str | os.PathLike[str] | None,
    control: str | Sequence[str] | None,
    given: Sequence[Intervention],
) -> list[Point]:
    """The plan, its settings checked, with the interventions that were given as objects."""
    if isinstance(settings, Settings):
        if out is None:
            raise InputError("fit needs the directory to write, out")
        settings = config.check(settings)
        named = [control] if isinstance(control, str) else list(control or ())
        plan = with_controls(settings, as_path(out), named)
        if len(plan) > 1 and is_run(as_path(out)):
            raise InputError(f"{out}: holds a run already; with a control, choose another --out")
    elif out is not None or control is not None:
        raise InputError(
            "a plan says itself where its runs go and which are controls: no out, no control"
        )
    else:
        plan = [replace(p, path=as_path(p.path)) for p in settings]
        plan = [replace(p, settings=config.check(p.settings)) for p in plan]
    plan = [replace(point, settings=_intervened(point.settings, given)) for point in plan]
    check_plan(plan)
    return plan


def _intervened(settings: Settings, given: Sequence[Intervention]) -> Settings:
    """Settings that name these interventions too, with theirs, checked."""
    tables = dict(settings.tables)
    for intervention in given:
        name = intervention.name
        if name in tables or name in config.core_names():
            raise InputError(
                f"interventions: the name {name!r} is taken by another that is on, a recorder or a "
                "setting"
            )
        tables[name] = config.checked(type(intervention), plugins.settings_of(intervention), name)
    names = (*settings.interventions, *(intervention.name for intervention in given))
    return replace(settings, interventions=names, tables=tables)


def _same(plan: Sequence[Point], hooks: list[str]) -> Run:
    """The run that is there already. Raises `InputError` unless it is what was planned."""
    for point in plan:
        run = open_run(point.path)
        differing = config.differences(point.settings, run.config)
        if run.provenance.get("hooks", []) != hooks:
            differing["hooks"] = (hooks, run.provenance.get("hooks", []))
        if run.status != "complete" or differing:
            pairs = ", ".join(f"{n} (asked {a!r}, there {b!r})" for n, (a, b) in differing.items())
            raise InputError(
                f"{point.path}: holds another run ({pairs or run.status}): choose another out, or "
                "overwrite=True"
            )
    return open_run(plan[0].path)


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


def _fit(
    point: Point,
    given: list[Intervention],
    extra: list[Recorder],
    facts: dict[str, Any],
    overwrite: bool,
    force: bool,
) -> None:
    """Train one run of a plan. `given`: interventions that are at hand as objects, by name."""
    training = Training.open(point.settings, point.path)
    if point.role == TWIN:
        training.move_last_digits()
    settings, documents = training.settings, training.documents
    if copies := documents.left_out["duplicates"] + documents.left_out["near_duplicates"]:
        what = "copies" if copies > 1 else "copy"
        print(f"documents: {copies} {what} or near {what} of others left out", file=sys.stderr)
    facts |= {
        "device": device_name(training.model.device),
        "threads": torch.get_num_threads(),
        "hooks": [str(recorder) for recorder in extra],
        "documents_left_out": documents.left_out,
    }
    with reproducible(training.model.device):
        interventions = Interventions(acting.find(settings, given), training)
        facts["edited_by"] = interventions.editing
        recording = Recording([*recorders.find(settings), *extra], training, interventions)
        announce(recording, training, point.path, force)
        training.fresh_optimizer()
        with Writer.create(
            point.path, settings, documents, training.timeline, provenance=facts
        ) as writer:
            recording.lay_out(writer)
            writer.put_in_place(overwrite)
            advance(training, interventions, recording, writer)


def advance(
    training: Training, interventions: Interventions, recording: Recording, writer: Writer
) -> None:
    """Train to the end of the schedule, and say in the provenance how that ended, whatever
    happens."""
    label = training.settings.schedule.kind
    with (
        _told(training, recording, writer),
        interventions.attached(),
        recording.attached(),
        Progress(label, training.timeline, training.done) as progress,
    ):
        train(training, interventions, recording, writer, progress)


@contextmanager
def _told(training: Training, recording: Recording, writer: Writer) -> Iterator[None]:
    path, episodes = writer.path, training.timeline.episodes
    status, message, started = "interrupted", "", time.monotonic()
    try:
        yield
        status = "complete"
    except Diverged as failure:
        status, message = "diverged", str(failure)
        raise Diverged(f"{path}: {failure}") from None
    except KeyboardInterrupt:
        message = f"stopped after {max(0, writer.rows - 1)} of {episodes} episodes"
        raise Interrupted(f"{path}: {message}; the record so far is kept") from None
    except BaseException as failure:  # SystemExit too: a plug-in's exit is a failure
        status, message = "failed", plugins.reason(failure)
        raise
    finally:
        seconds = time.monotonic() - started
        with uninterrupted():
            facts = recording.finish(seconds)
            writer.finish(status, message, seconds=round(seconds, 2), **facts)
