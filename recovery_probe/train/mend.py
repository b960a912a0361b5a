"""Of a damaged run, what training again can make: bit for bit on the same machine."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from recovery_probe.errors import Damaged, InputError
from recovery_probe.machine import threads
from recovery_probe.record import checksums, group
from recovery_probe.record.layout import TRAINING
from recovery_probe.record.lock import Lock
from recovery_probe.record.run import Run, open_run
from recovery_probe.record.verify import COPY, Flaw, verify
from recovery_probe.recorders import Episode, Recorder
from recovery_probe.recorders import recording as recorders
from recovery_probe.recorders.checkpoints import Checkpoints
from recovery_probe.saying import say
from recovery_probe.train.replay import Compared, again, replay, taken_up


def mend(path: Path, flaws: Sequence[Flaw]) -> list[Flaw]:
    """Make again what can be, and return what is damaged then. Losses that can be read must come
    out as they are.

    Raises `Damaged` for a run that nothing can be trained from; `InputError` for one that has not
    ended (resume it), or whose losses do not come out.
    """
    if lost := [flaw for flaw in flaws if flaw.mend == COPY]:
        raise Damaged(f"{path}: nothing can be trained from it: {lost[0]}")
    run = open_run(path)
    if run.status != "complete":
        raise InputError(f"{path}: is {run.status}: python -m recovery_probe.train --resume {path}")
    groups = list(dict.fromkeys(flaw.group for flaw in flaws if flaw.group))
    rows = {row for flaw in flaws for row in flaw.rows}
    done = {flaw.episodes_done for flaw in flaws if flaw.episodes_done is not None}
    if rows:
        _mend_losses(run, rows)
        run = open_run(path)
    if done:
        _mend_checkpoints(run, done)
    _mend_groups(run, groups)
    checksums.write(path)
    return verify(path)


class Taken(Compared):
    """Losses that are trained again: those that can be read are compared, the others kept."""

    def __init__(self, run: Run, lost: Collection[int]) -> None:
        super().__init__(run, lost)
        self.losses: dict[int, Any] = {}
        self.train_loss: dict[int, Any] = {}

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        super().commit(row, losses, train_loss)
        self.losses[row], self.train_loss[row] = np.asarray(losses), np.asarray(train_loss)


def _mend_losses(run: Run, rows: set[int]) -> None:
    record = run.path / "record.zarr"
    arrays = {n: group.opened(record, f"{TRAINING}/{n}") for n in ("losses", "train_loss")}
    read = {name: _readable(array) for name, array in arrays.items()}
    readable, damaged = ({n: pair[i] for n, pair in read.items()} for i in (0, 1))
    M = run.config.steps
    run.losses = run.record.losses.copy(data=readable["losses"])  # instead of what is damaged
    run.train_loss = run.record.train_loss.copy(data=readable["train_loss"])
    with threads(run.config.threads), closing(Lock(run.path)) as lock:
        lock.begin()
        training = taken_up(run, max(0, min(rows) - 1), max(rows))
        taken = Taken(run, rows)
        again(training, (), (), taken, max(rows))
        for row in rows & taken.losses.keys():
            readable["losses"][row] = taken.losses[row]
            if row:
                readable["train_loss"][(row - 1) * M : row * M] = taken.train_loss[row]
        for name, array in arrays.items():
            for chunk in damaged[name]:  # which could not be read to be written over in part
                chunk.unlink(missing_ok=True)
            array[...] = readable[name]
    say(f"{run.path}: {len(rows)} rows of losses; {taken.said()}")


def _readable(array: Any) -> tuple[Any, list[Path]]:
    """An array in memory, NaN where its chunks cannot be read, and the files of those."""
    values, bad = np.full(array.shape, np.nan), []
    for start in range(0, array.shape[0], array.chunks[0]):
        try:
            values[start : start + array.chunks[0]] = array[start : start + array.chunks[0]]
        except Exception:
            place = [start // array.chunks[0], *[0] * (array.ndim - 1)]
            bad.append(Path(array.store.root, array.path, "c", *map(str, place)))
    return values, bad


class Remade(Checkpoints):
    """The checkpoints that are to be made again, and no others."""

    wanted: Collection[int] = ()

    def committed(self, episode: Episode) -> None:
        if episode.done in self.wanted:
            self.training.save()


def _mend_checkpoints(run: Run, done: set[int]) -> None:
    remade = Remade()
    remade.wanted = done
    own: list[Recorder] = [
        remade if recorder.name == "checkpoints" else recorder
        for recorder in recorders.find(run.config)
    ]
    with threads(run.config.threads), closing(Lock(run.path)) as lock:
        lock.begin()
        training = taken_up(run, max(0, min(done) - 1), max(done))
        compared = Compared(run)
        again(training, (), own, compared, max(done))
    names = ", ".join(map(str, sorted(done)))
    say(f"{run.path}: checkpoints after {names}; {compared.said()}")


def _mend_groups(run: Run, groups: Sequence[str]) -> None:
    own = {recorder.name: recorder for recorder in recorders.find(run.config)}
    known = [own[name] for name in groups if name in own]
    for name in groups:
        if name not in own:
            print(
                f"{run.path}: {name} was recorded by a hook that is no setting: replay it with "
                "that hook, and --overwrite",
                file=sys.stderr,
            )
    if known:
        replay(run, record=known, overwrite=True)
