"""`fit`: runs trained as planned, and written."""

from __future__ import annotations

import copy
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recovery_probe import config, plugins
from recovery_probe.errors import Diverged, InputError, Interrupted
from recovery_probe.interventions import Intervention, acting
from recovery_probe.interventions.acting import Interventions
from recovery_probe.machine import (
    device_name,
    reproducible,
    stoppable,
    threads,
    uninterrupted,
)
from recovery_probe.record import checkpoint, mends, store
from recovery_probe.record.folder import as_path, checkpoints, is_run
from recovery_probe.record.run import Run, open_run
from recovery_probe.record.writer import Writer, bring_back, check_vacant
from recovery_probe.recorders import Recorder
from recovery_probe.recorders import recording as recorders
from recovery_probe.recorders.recording import Recording
from recovery_probe.saying import say
from recovery_probe.settings import Settings
from recovery_probe.train.announce import announce
from recovery_probe.train.given import as_interventions, as_recorder
from recovery_probe.train.loop import train
from recovery_probe.train.plan import (
    TWIN,
    Point,
    begins_of,
    beside,
    check_plan,
    with_controls,
)
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
    resume: bool = False,
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
    (`overwrite` replaces a run, and nothing else; `resume` goes on with a run of the same settings
    from its newest checkpoint, or where it ended if more epochs are asked for, and leaves one that
    is complete as it is) or the disk has no room (`force` tries all the
    same); `Diverged` or `HookError` when training fails and `Interrupted`, a `KeyboardInterrupt`,
    when it is stopped, with the record up to there kept.
    """
    given, hooks = as_interventions(interventions), list(hooks)
    if resume and overwrite:
        raise InputError("resume keeps what overwrite deletes: one of the two")
    plan = _planned(settings, out, control, given)
    if resume:  # what a run began with is no setting: it says so itself
        plan = [replace(p, begins=p.begins or begins_of(p.path)) for p in plan]
    for point in plan:
        bring_back(point.path)
        if resume and is_run(point.path):
            check_same(point, [str(as_recorder(hook, hook_during)) for hook in hooks])
        else:
            check_vacant(point.path, overwrite)
    with threads(plan[0].settings.threads):
        for point in plan:
            # Recorders and interventions have a state: each run gets its own.
            extra = [as_recorder(hook, hook_during) for hook in hooks]
            own = [copy.deepcopy(intervention) for intervention in given]
            links = links_of(plan, point)
            fit_point(point, links, own, extra, overwrite=overwrite, resume=resume, force=force)
    return open_run(plan[0].path)


def links_of(plan: Sequence[Point], point: Point) -> dict[str, Any]:
    """What a run's provenance says of its plan: its `role`, and the `controls` and `twins` beside
    it, as paths from its own directory."""
    named = {
        f"{role}s": [os.path.relpath(p.path, point.path) for p in beside(plan, point, role)]
        for role in ("control", TWIN)
    }
    return {"role": point.role, **named}


def fit_point(
    point: Point,
    links: dict[str, Any],
    given: Sequence[Intervention] = (),
    extra: Sequence[Recorder] = (),
    *,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train one run of a plan, or go on with it. `links`: as `links_of` gives them; `given`:
    interventions that are at hand as objects, by name; `extra`: recorders beside those named."""
    if resume and is_run(point.path):
        go_on(open_run(point.path), point.settings, list(given), list(extra))
    else:
        facts = {**links, "outcome": config.declared(point.settings)}
        _fit(point, list(given), list(extra), facts, overwrite, force)


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


def _fit(
    point: Point,
    given: list[Intervention],
    extra: list[Recorder],
    facts: dict[str, Any],
    overwrite: bool,
    force: bool,
) -> None:
    if point.begins:
        origin = open_run(point.begins.run)
        training = Training.begun(point.settings, origin, point.begins.episodes_done, point.path)
        facts["begins"] = point.begins.told(point.path)
    else:
        training = Training.open(point.settings, point.path)
    if point.role == TWIN:
        training.move_last_digits()
    settings, documents = training.settings, training.documents
    if copies := documents.left_out["duplicates"] + documents.left_out["near_duplicates"]:
        what = "copies" if copies > 1 else "copy"
        say(f"documents: {copies} {what} or near {what} of others left out")
    facts |= {
        "device": device_name(training.model.device),
        "threads": torch.get_num_threads(),
        "weights": training.model.digest(),
        "parameters": sum(p.numel() for p in training.model.parameters.values()),
        "hooks": [str(recorder) for recorder in extra],
        "documents_left_out": documents.left_out,
    }
    with reproducible(training.model.device):
        interventions = Interventions(acting.find(settings, given), training)
        facts["edited_by"] = interventions.editing
        recording = Recording([*recorders.find(settings), *extra], training, interventions)
        announce(recording, training, point.path, force)
        training.first_optimizer()
        with Writer.create(
            point.path, settings, documents, training.timeline, provenance=facts
        ) as writer:
            recording.lay_out(writer)
            writer.put_in_place(overwrite)
            advance(training, interventions, recording, writer)


def check_same(point: Point, hooks: list[str]) -> None:
    """Raise `InputError` unless the run that is there is the one that is planned, or fewer epochs
    of it."""
    run = open_run(point.path)
    there = config.resolved(run.config)  # with settings that have come since, as they were then
    differing = config.differences(there, point.settings, roles=("numbers", "watch"))
    if point.settings.epochs > run.config.epochs:
        differing.pop("epochs", None)
    if run.provenance.get("hooks", []) != hooks:
        differing["hooks"] = (run.provenance.get("hooks", []), hooks)
    begins = point.begins and point.begins.told(point.path)
    if run.provenance.get("begins") != begins:
        differing["begins"] = (run.provenance.get("begins"), begins)
    if mends.simulated(run.provenance):
        raise InputError(f"{point.path}: was simulated, and never trained: nothing goes on")
    if differing:
        pairs = "; ".join(f"{n} is {a!r} there, and {b!r} here" for n, (a, b) in differing.items())
        raise InputError(
            f"{point.path}: holds another run ({pairs}): resume it with what it has, or choose "
            "another out"
        )


def go_on(run: Run, settings: Settings, given: list[Intervention], extra: list[Recorder]) -> None:
    """Train a run from its newest whole checkpoint to its end."""
    if run.status == "complete" and settings.epochs == run.config.epochs:
        return
    if run.status == "diverged":
        raise Diverged(f"{run.path}: {run.provenance['message']}; it would again")
    if settings.epochs != run.config.epochs:
        lengthen(run, settings, given, extra)
    with Writer.reopen(run.path) as writer:
        run = run.refresh()  # nobody else writes now
        done, damaged = checkpoint.newest(run.path, run.episodes_done)
        mends.tell_damaged(run.path, damaged)
        device = settings.device
        training = Training.again(run, device) if done is None else Training.at(run, done, device)
        with reproducible(training.model.device):
            interventions = Interventions(acting.find(settings, given), training)
            recording = Recording([*recorders.find(settings), *extra], training, interventions)
            writer.go_on(training.done, device=device_name(training.model.device))
            again = run.episodes_done - training.done
            say(
                f"{run.path}: goes on after {training.done} of {training.timeline.episodes} "
                "episodes" + (f"; {again} recorded ones are trained again" if again else "")
            )
            advance(training, interventions, recording, writer)


def lengthen(
    run: Run, settings: Settings, given: list[Intervention], extra: list[Recorder]
) -> None:
    """Lay a run out anew for more epochs, with all that it has, in its own place."""
    training = Training.again(run, settings.device, settings.epochs)
    now, before = training.timeline.episodes, run.schedule.size
    with reproducible(training.model.device):
        interventions = Interventions(acting.find(settings, given), training)
        recording = Recording([*recorders.find(settings), *extra], training, interventions)
        entry = {"at": store.now(), "epochs": [run.config.epochs, settings.epochs]}
        facts = run.provenance | {
            "status": "interrupted",
            "message": f"{before} of {now} episodes, and more were asked for",
            "lengthened": [*run.provenance.get("lengthened", []), entry],
        }
        with Writer.create(
            run.path, training.settings, training.documents, training.timeline, provenance=facts
        ) as writer:
            recording.lay_out(writer)
            writer.take_over(run)
            writer.put_in_place(overwrite=True)
    say(f"{run.path}: {now} episodes instead of {before}")


def advance(
    training: Training, interventions: Interventions, recording: Recording, writer: Writer
) -> None:
    """Train to the end of the schedule, and say in the provenance how that ended, whatever
    happens."""
    label = training.settings.schedule.kind
    with (
        stoppable(training) as signals,
        _told(training, recording, writer, signals),
        interventions.attached(),
        recording.attached(),
        Progress(label, training.timeline, training.done) as progress,
    ):
        if not train(training, interventions, recording, writer, progress):
            raise KeyboardInterrupt


@contextmanager
def _told(
    training: Training, recording: Recording, writer: Writer, signals: list[int]
) -> Iterator[None]:
    path, episodes = writer.path, training.timeline.episodes
    status, message, started = "interrupted", "", time.monotonic()
    try:
        yield
        status = "complete"
    except Diverged as failure:
        status, message = "diverged", str(failure)
        raise Diverged(f"{path}: {failure}") from None
    except KeyboardInterrupt:
        message = f"stopped after {training.done} of {episodes} episodes"
        raise Interrupted(
            f"{path}: {message}; {_how_to_go_on(path)}", next(iter(signals), 0)
        ) from None
    except OSError as failure:
        status, message = "failed", plugins.reason(failure)
        if failure.errno in store.FULL:
            raise InputError(
                f"{path}: the disk is full, after {training.done} of {episodes} episodes: make "
                f"room; {_how_to_go_on(path)}"
            ) from None
        raise
    except BaseException as failure:  # SystemExit too: a plug-in's exit is a failure
        status, message = "failed", plugins.reason(failure)
        raise
    finally:
        seconds = time.monotonic() - started
        with uninterrupted():
            facts = recording.finish(seconds)
            total = writer.provenance.get("seconds", 0) + seconds
            try:
                writer.finish(status, message, seconds=round(total, 2), **facts)
            except OSError:  # the disk is full: what happened is being said
                if status == "complete":
                    raise


def _how_to_go_on(path: Path) -> str:
    there = checkpoints(path)
    where = f"from its checkpoint after {there[-1]}" if there else "from its start"
    return f"to go on {where}: python -m recovery_probe.train --resume {shlex.quote(str(path))}"
