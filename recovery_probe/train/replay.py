"""A run trained again, from a checkpoint, to see what was not recorded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recovery_probe import plugins
from recovery_probe.errors import InputError, Missing
from recovery_probe.interventions import acting
from recovery_probe.interventions.acting import Interventions
from recovery_probe.machine import device_name, reproducible, stoppable, threads
from recovery_probe.record import checkpoint, checksums, group, mends, store
from recovery_probe.record.layout import STEP, Array, Timeline
from recovery_probe.record.lock import Lock
from recovery_probe.record.run import Run
from recovery_probe.record.sink import Sink, Unwritten
from recovery_probe.record.versions import changed, machine
from recovery_probe.record.writer import ASIDE
from recovery_probe.recorders import Recorder
from recovery_probe.recorders.recording import Recording
from recovery_probe.saying import say
from recovery_probe.train.given import as_interventions, as_recorder
from recovery_probe.train.loop import train
from recovery_probe.train.progress import Progress
from recovery_probe.training import Training

# Nats by which losses may differ on another machine or with other libraries, where the last digits
# of numbers are others: some 20 episodes then move the losses of a small network by .008.
TOLERANCE = 0.01


def replay(
    run: Run,
    *,
    hooks: Iterable[Any] = (),
    hook_during: str | None = None,
    record: Iterable[str | Recorder | type[Recorder]] = (),
    episodes: tuple[int, int] | None = None,
    interventions: Iterable[Any] = (),
    overwrite: bool = False,
) -> Run:
    """Train episodes `start` to `stop` (this one not among them; all that the run has, when none
    are given) of a run once more, from the nearest checkpoint before, with other recorders:
    `hooks` as `fit` takes them, and what `record` names. What they see is added to the run's
    record, each in its own group, as if it had been recorded then: rows of those steps, and of the
    evaluations after those episodes. Nothing else in the run changes. The run's own interventions
    act; those that were objects are given again.

    The losses must be those recorded: bit for bit, or on another machine or with other libraries
    within `TOLERANCE`; which it was is said, and stands in the group's attribute `replayed`.
    Returns the run, with what was added.

    Raises `InputError` for episodes that the run has not, a recorder that it has already (unless
    `overwrite`), or losses that are not its own: then nothing is added.
    """
    start, stop = episodes or (0, run.episodes_done)
    if not 0 <= start < stop <= run.episodes_done:
        raise InputError(
            f"episodes {start}:{stop}: {run.path} has episodes 0:{run.episodes_done} to replay"
        )
    watching = [as_recorder(hook, hook_during) for hook in hooks]
    watching += [_recorder(each) for each in record]
    if not watching:
        raise InputError("replay records nothing: name a hook, or a recorder")
    for recorder in watching:
        if recorder.name in run.recorders and not overwrite:
            raise InputError(
                f"{run.path}: has {recorder.name} already; --overwrite (overwrite=True) replaces it"
            )
    with threads(run.config.threads), closing(Lock(run.path)) as lock:
        lock.begin()
        training = taken_up(run, start, stop)
        with Addition(run, training.timeline, start, stop) as addition:
            again(training, interventions, watching, addition, stop)
            addition.put_in_place(training)
    return run.refresh()


def training_at(
    run: Run, episodes_done: int, device: str | None = None, interventions: Iterable[Any] = ()
) -> Training:
    """A run as it was after so many episodes: from the checkpoint there, or from the nearest one
    before it and trained from there, which is said beforehand.

    Raises `Missing` when the run has not got so far; `InputError` when its losses do not come out
    as recorded.
    """
    if not 0 <= episodes_done <= run.episodes_done:
        raise Missing(f"{run.path}: has {run.episodes_done} episodes, and not {episodes_done}")
    with threads(run.config.threads):
        training = taken_up(run, episodes_done, episodes_done, device)
        if training.done < episodes_done:
            compared = Compared(run)
            again(training, interventions, (), compared, episodes_done)
            say(f"{run.path}: {compared.said()}")
    return training


def visited(
    run: Run, training: Training, rows: Collection[int], visit: Callable[[int], None]
) -> str:
    """Train a run again, once, from where `training` took it up (`taken_up`) to the last of `rows`,
    and call `visit` where so many episodes are done as each of them says. It may do with the model
    what it likes, and leaves it as it was. Returns how well losses agree with those recorded.

    Raises `InputError` when they do not.
    """
    compared = Visited(run, rows, visit)
    if training.done and training.done in rows:  # else the loop begins with it
        with reproducible(training.model.device):
            visit(training.done)
    if training.done < max(rows):
        again(training, (), (), compared, max(rows))
    return compared.said()


def again(
    training: Training,
    interventions: Iterable[Any],
    recorders: Sequence[Recorder],
    writer: Sink,
    stop: int,
    label: str = "again",
) -> None:
    """Train up to an episode, as the run was trained; progress under a `label`."""
    given = as_interventions(interventions)
    with reproducible(training.model.device):
        acts = Interventions(acting.find(training.settings, given), training)
        recording = Recording(recorders, training, acts)
        recording.lay_out(writer)
        if recorders:
            calls = recording.rehearse(stop)
            more = sum(seconds * count for seconds, count, _ in calls.values())
            say(f"{', '.join(calls)}: about {more:.0f} s more")
        with (
            stoppable(training),
            acts.attached(),
            recording.attached(),
            Progress(label, training.timeline, training.done, stop) as progress,
        ):
            if not train(training, acts, recording, writer, progress, stop):
                raise KeyboardInterrupt


def taken_up(run: Run, start: int, stop: int, device: str | None = None) -> Training:
    """From the newest whole checkpoint up to an episode, and how long the rest will take."""
    if mends.simulated(run.provenance):
        raise Missing(f"{run.path}: {mends.no_checkpoint(run.provenance, start, [])}")
    done, damaged = checkpoint.newest(run.path, start)
    mends.tell_damaged(run.path, damaged)
    device = device or run.config.device
    training = Training.again(run, device) if done is None else Training.at(run, done, device)
    if count := stop - training.done:
        each = run.provenance.get("seconds", 0) / max(1, run.episodes_done)
        say(
            f"{run.path}: {count} episodes are trained again, from "
            + (f"the checkpoint after {done}" if done is not None else "the start")
            + f": about {each * count:.0f} s as the run took"
        )
    return training


class Compared(Unwritten):
    """What the loop writes to when a run is trained again: the losses, compared with those that
    were recorded, and nothing else."""

    def __init__(self, run: Run, lost: Collection[int] = ()) -> None:
        self.run, self.off, self.rows = run, 0.0, 0
        self.lost = lost  # rows of which nothing can be read
        self.changed = changed(run.provenance, machine())

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        """Raise `InputError` where the losses are not those recorded."""
        M = self.run.config.steps
        pairs = [(losses, self.run.losses.values[row])]
        if len(train_loss):
            pairs += [(train_loss, self.run.train_loss.values[(row - 1) * M : row * M])]
        off = max(float(np.abs(np.asarray(a) - b).max()) for a, b in pairs)
        if np.isnan(off) and row in self.lost:
            return
        self.off, self.rows = max(self.off, off), self.rows + 1
        if not off <= TOLERANCE:
            raise InputError(
                f"{self.run.path}: after {row} episodes losses differ from those recorded by "
                f"{off:.2g} nats, and not by {TOLERANCE} at most: this is not the same run; what "
                f"has changed since: {mends.in_words(self.changed)}"
            )

    def said(self) -> str:
        """How well it agreed."""
        if not self.off:
            return f"the losses ({self.rows} rows) are the recorded ones, bit for bit"
        return (
            f"the losses ({self.rows} rows) differ from the recorded ones by up to "
            f"{self.off:.2g} nats ({TOLERANCE} is allowed); what has changed since: "
            f"{mends.in_words(self.changed)}"
        )


class Visited(Compared):
    """Losses compared, and after some of the episodes a visit."""

    def __init__(self, run: Run, due: Collection[int], visit: Callable[[int], None]) -> None:
        super().__init__(run)
        self.due, self.visit = due, visit

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        super().commit(row, losses, train_loss)
        if row in self.due:
            self.visit(row)


class Addition(Compared):
    """Groups that are added to the record of a run, of some of its episodes: written aside, and
    put in place when whole."""

    def __init__(self, run: Run, timeline: Timeline, start: int, stop: int) -> None:
        super().__init__(run)
        self.timeline, self.start, self.stop = timeline, start, stop
        self.first: dict[tuple[str, str], tuple[int, int]] = {}  # group, array -> rows that count
        self.groups: list[str] = []
        self.opened: dict[str, Any] = {}
        for left in run.path.glob(f"{ASIDE}*"):  # by one that was killed: the run is locked
            shutil.rmtree(left)
        self.aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=run.path))

    def __enter__(self) -> Addition:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)

    def add_group(
        self,
        name: str,
        arrays: Mapping[str, Array],
        coords: Mapping[str, tuple[Any, Any]],
        due: Mapping[Any, NDArray[np.int64]],
        attrs: Mapping[str, Any],
    ) -> None:
        """Lay out a recorder's arrays for the times that are replayed."""
        kept = {}
        for time, times in due.items():
            of_stretches = any(a.time == time and a.covers == "stretch" for a in arrays.values())
            which = np.flatnonzero(self._replayed(time, times, of_stretches))
            first, count = (int(which[0]), len(which)) if len(which) else (0, 0)
            kept[time] = times[first : first + count]
            for array_name, array in arrays.items():
                if array.time == time:
                    self.first[name, array_name] = first, count
        if not any(count for (of, _), (_, count) in self.first.items() if of == name):
            raise InputError(
                f"episodes {self.start}:{self.stop}: nothing of {name} is due in them, by its "
                "settings"
            )
        group.lay_out(self.aside, self.timeline, name, arrays, coords, kept, attrs)
        self.groups.append(name)

    def _replayed(
        self, time: str, times: NDArray[np.int64], of_stretches: bool
    ) -> NDArray[np.bool_]:
        if time != STEP:
            return (times > self.start) & (times <= self.stop) | (times == 0) & (self.start == 0)
        M = self.timeline.steps
        ends = np.append(times[1:], self.timeline.total) if of_stretches else times + 1
        return (times >= self.start * M) & (ends <= self.stop * M)

    def write(self, recorder: str, name: str, start: int, rows: NDArray[Any]) -> None:
        """Those of the rows from row `start` that are replayed."""
        key = f"{recorder}/{name}"
        if key not in self.opened:
            self.opened[key] = group.opened(self.aside / recorder, name)
        first, count = self.first[recorder, name]
        low, high = max(start, first), min(start + len(rows), first + count)
        if low < high:
            self.opened[key][low - first : high - first] = rows[low - start : high - start]

    def put_in_place(self, training: Training) -> None:
        """Into the run's record."""
        entry = {
            "at": store.now(),
            "episodes": [self.start, self.stop],
            "device": device_name(training.model.device),
            **machine(),
            "agreed": self.said(),
        }
        record = self.run.path / "record.zarr"
        for name in self.groups:
            group.describe(self.aside / name, replayed=entry)
            shutil.rmtree(record / name, ignore_errors=True)
            (self.aside / name).rename(record / name)
        store.consolidate(record)
        if (self.run.path / checksums.FILE).exists():
            checksums.write(self.run.path)
        say(f"{self.run.path}: {', '.join(self.groups)} added; {self.said()}")


def _recorder(each: str | Recorder | type[Recorder]) -> Recorder:
    """As `settings.recorders` names it, or given."""
    if isinstance(each, str):
        return plugins.made(plugins.find("recorders", each), {}, plugins.key_of(each))
    return as_recorder(each)
