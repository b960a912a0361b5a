"""Writes a run directory, one committed episode at a time. Imports no torch."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from recovery_probe import config
from recovery_probe.documents import Documents
from recovery_probe.errors import InputError
from recovery_probe.record import checksums, group, mends, store
from recovery_probe.record.blank import lay_out
from recovery_probe.record.folder import checkpoint_folder, checkpoints, is_run
from recovery_probe.record.layout import STEP, TRAINING, Array, Timeline
from recovery_probe.record.lock import Lock, busy, holder, is_locked, was_left
from recovery_probe.record.run import Run, open_run
from recovery_probe.record.versions import changed, machine
from recovery_probe.settings import Settings

BEFORE = "-before"  # ends the name of a run that is being replaced
ASIDE = ".replay-"  # begins the name of what a replay writes aside
# Begin the names of what is of a run as it was, and made again.
OF_THE_OLD = ("analyses", "report.", "checksums.json", "lock", ASIDE)


def _begins(path: Path) -> str:
    return f".{path.name[:100]}-"


def _aside(path: Path, ends: str = "") -> list[Path]:
    """What lies aside of a run's place, while it is put there."""
    return sorted(path.parent.glob(f"{glob.escape(_begins(path))}*{ends}"))


def bring_back(path: Path) -> None:
    """Put a run back in its place, if it was taken from there to be replaced, and the process was
    killed before something else was put there."""
    if not path.exists() and (found := _aside(path, BEFORE)):
        os.rename(found[-1], path)


def check_vacant(path: Path, overwrite: bool) -> None:
    """Raise `InputError` unless a run may be written at `path`. Only a run is ever replaced."""
    if path.is_dir() and any(path.iterdir()):
        if not is_run(path):
            raise InputError(f"{path}: exists and is not a run: choose another --out")
        if is_locked(path):
            raise busy(path)
        if not overwrite:
            raise InputError(
                f"{path}: holds a run already: choose another --out, or add --overwrite "
                "(overwrite=True), which deletes all that is in it"
            )
        return
    if path.exists() or path.is_symlink():
        if not path.is_dir():
            raise InputError(f"{path}: exists and is not a run: choose another --out")
        return
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir():
        raise InputError(f"{path}: {above} is not a folder: choose another --out")
    if not os.access(above, os.W_OK):
        raise InputError(f"{path}: nothing may be written in {above}: choose another --out")


class Writer:
    """A run directory that is being written, under its lock.

    The whole record is laid out aside, before training, put in place, then filled along time.
    `rows_committed` is written last: what is not counted there does not exist for a reader. As a
    context it lets go of the lock at the end, and of everything when it was not put in place.
    """

    def __init__(self, folder: Path, path: Path, timeline: Timeline, lock: Lock) -> None:
        self.aside, self.path, self.timeline, self.lock = folder, path, timeline, lock
        self.provenance: dict[str, Any] = {}
        self._opened: dict[str, Any] = {}
        self.in_place = folder == path
        self.rows = 0  # committed
        self.before: dict[str, Any] = {}  # what is being written again, as it was

    @classmethod
    def create(
        cls,
        path: Path,
        settings: Settings,
        documents: Documents,
        timeline: Timeline,
        *,
        provenance: dict[str, Any],
    ) -> Self:
        """Lay out a new run aside; `put_in_place` moves it to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in _aside(path):
            # By a process that was killed just then.
            if was_left(left) or (left.name.endswith(BEFORE) and path.exists()):
                shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=_begins(path), dir=path.parent))
        writer = cls(aside, path, timeline, Lock(aside))
        try:
            writer.lock.begin()
            aside.chmod(0o777 & ~_umask())
            (aside / "config.toml").write_text(config.to_toml(settings), encoding="utf-8")
            writer.provenance = {
                "status": "running",
                "started": store.now(),
                **provenance,
                **machine(),
            }
            store.write_json(aside / "provenance.json", writer.provenance)
            lay_out(aside / "record.zarr", settings, documents, timeline)
        except BaseException:
            writer.__exit__()
            raise
        return writer

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Take up a run that is there. Its rows go on counting; `go_on` says from where they are
        written again. Raises `InputError` while somebody writes there."""
        lock = Lock(open_run(path).path)
        try:
            run = Run(path)
            writer = cls(path, path, run.timeline, lock)
            writer.rows, writer.provenance = run.rows, dict(run.provenance)
            lock.begin()
        except BaseException:
            lock.close()
            raise
        return writer

    def go_on(self, done: int, **facts: Any) -> None:
        """Write again after `done` episodes. Rows of later ones that count already must come out
        as they are; checkpoints of later ones go. `facts` stand in the provenance, among what was
        `resumed`.

        Raises `InputError` where the run has not got so far.
        """
        if not 0 <= done <= max(0, self.rows - 1):
            raise InputError(f"{self.path}: has {max(0, self.rows - 1)} episodes, and not {done}")
        arrays = {name: self._array(f"{TRAINING}/{name}") for name in ("losses", "train_loss")}
        with store.reading(f"{self.path}: losses"):
            self.before = {name: array[:] for name, array in arrays.items()}
        now = machine()
        entry = {
            "at": store.now(),
            "after": done,
            "again": max(0, self.rows - 1 - done),
            "changed": changed(self.provenance, now),
            **facts,
        }
        (self.path / checksums.FILE).unlink(missing_ok=True)
        self.provenance |= {"status": "running", **now}
        self.provenance["resumed"] = [*self.provenance.get("resumed", []), entry]
        store.write_json(self.path / "provenance.json", self.provenance)
        group.describe(self.record, status="running")
        store.consolidate(self.record)
        for later in checkpoints(self.path):
            if later > done:
                shutil.rmtree(checkpoint_folder(self.path, later))

    def take_over(self, run: Run) -> None:
        """What a run has, of which this one is a longer schedule: rows, documents as recorded,
        checkpoints, groups that no recorder of this one writes, and whatever else lies in its
        folder, but what was found of it as it was."""
        training = zarr.open_group(run.path / "record.zarr" / TRAINING, mode="r")
        for name, array in training.arrays():
            ours, rows = self._array(f"{TRAINING}/{name}"), run.rows
            if name in ("losses", "train_loss"):
                rows = rows if name == "losses" else run.episodes_done * self.timeline.steps
                ours[:rows] = array[:rows]
            elif ours.shape == array.shape:
                ours[...] = array[...]
        for name in run.recorders:
            if (self.record / name).exists():
                self._take_rows(run, name)
            else:
                shutil.copytree(run.path / "record.zarr" / name, self.record / name)
        for done in run.checkpoints:
            folder = checkpoint_folder(run.path, done)
            shutil.copytree(folder, checkpoint_folder(self.aside, done))
        for other in run.path.iterdir():
            place = self.aside / other.name
            if place.exists() or other.name.startswith(OF_THE_OLD):
                continue
            (shutil.copytree if other.is_dir() else shutil.copy2)(other, place)
        self._count(run.rows)

    def _take_rows(self, run: Run, recorder: str) -> None:
        """The rows of a recorder that count in both."""
        done, M = run.episodes_done, self.timeline.steps
        ours = zarr.open_group(self.record / recorder, mode="r+", use_consolidated=False)
        theirs = zarr.open_group(run.path / "record.zarr" / recorder, mode="r")
        for name, array in theirs.arrays():
            if "covers" not in array.attrs:
                continue  # a coordinate
            time, *_ = cast(Any, array).metadata.dimension_names
            times, before = (np.asarray(cast(Any, group[time])[:]) for group in (ours, theirs))
            if array.attrs["covers"] == "stretch":
                ends = np.append(times[1:], self.timeline.total) - 1  # when each is due
            else:
                ends = times
            counted = ends < (done * M if time == STEP else run.rows)
            both = np.flatnonzero(counted & np.isin(times, before))
            if len(both):  # of more epochs the last ones begin later
                first = int(np.searchsorted(before, times[both[0]]))
                own = self._array(f"{recorder}/{name}")
                own[both[0] : both[-1] + 1] = array[first : first + len(both)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.in_place:
            shutil.rmtree(self.aside, ignore_errors=True)
        self.lock.close()

    @property
    def record(self) -> Path:
        """Where the arrays lie now."""
        return (self.path if self.in_place else self.aside) / "record.zarr"

    def put_in_place(self, overwrite: bool = False) -> None:
        """Move what was laid out to where the run is to be, and replace a run only when told to.

        Raises `InputError` where `check_vacant` does, and while somebody writes there.
        """
        check_vacant(self.path, overwrite)
        store.consolidate(self.record)
        before = None
        if is_run(self.path):
            if was_left(self.path):
                who = holder(self.path)
                print(f"note: {self.path} was left by {who}, which is gone", file=sys.stderr)
            replaced = Lock(self.path)
            before = self.aside.with_name(self.aside.name + BEFORE)
            os.rename(self.path, before)
        try:
            os.rename(self.aside, self.path)
        except OSError as error:
            raise InputError(
                f"{self.path}: another run came there first ({error.strerror}): choose another "
                "--out"
            ) from None
        self.in_place, self.lock.folder = True, self.path
        if before is not None:
            replaced.folder = before
            replaced.close()
            shutil.rmtree(before)

    def add_group(
        self,
        name: str,
        arrays: Mapping[str, Array],
        coords: Mapping[str, tuple[Any, Any]],
        due: Mapping[Any, NDArray[np.int64]],
        attrs: Mapping[str, Any],
    ) -> None:
        """Lay out a recorder's arrays for the whole run, in a group of its own. `attrs`: its
        settings, for whoever reads them."""
        group.lay_out(self.record, self.timeline, name, arrays, coords, due, attrs)

    def write(self, recorder: str, name: str, start: int, rows: NDArray[Any]) -> None:
        """Rows of a recorder's array, from row `start`; they count once `commit` is called."""
        self._array(f"{recorder}/{name}")[start : start + len(rows)] = rows

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        """Row `row` of the losses (after that many episodes), and the training losses of the
        episode that led to it."""
        start = (row - 1) * self.timeline.steps
        places: dict[str, tuple[Any, Any]] = {"losses": (row, losses)}
        if train_loss:
            places["train_loss"] = (slice(start, start + len(train_loss)), train_loss)
        if row < self.rows:
            self._compare(row, places)
        for name, (place, values) in places.items():
            self._array(f"{TRAINING}/{name}")[place] = np.asarray(values)
        if row >= self.rows:
            self._count(row + 1)

    def _count(self, rows: int) -> None:
        self._array(f"{TRAINING}/rows_committed")[...] = rows
        self.rows = rows

    def _compare(self, row: int, places: Mapping[str, tuple[Any, Any]]) -> None:
        """Where what is written again is not what was there, later rows of before count no more,
        and what has changed meanwhile is said: here and in the provenance."""
        off = max(
            float(np.abs(np.asarray(values) - self.before[name][place]).max())
            for name, (place, values) in places.items()
        )
        if off == 0:
            return
        entry = self.provenance["resumed"][-1]
        entry["differs"] = {"after": row, "by": off}
        store.write_json(self.path / "provenance.json", self.provenance)
        print(
            f"note: {self.path}: after {row} episodes losses differ from those recorded before by "
            f"up to {off:.2g} nats; what has changed since: {mends.in_words(entry['changed'])}. "
            "From there on the record is of this machine",
            file=sys.stderr,
        )
        self._count(row + 1)

    def finish(self, status: str, message: str = "", **facts: Any) -> None:
        """Say how the run ended, in its provenance and in the record's own attributes."""
        self.provenance |= {"status": status, "message": message, "finished": store.now(), **facts}
        store.write_json(self.path / "provenance.json", self.provenance)
        group.describe(self.record, status=status)
        store.consolidate(self.record)
        checksums.write(self.path)

    def _array(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = group.opened(self.record, name)
        return self._opened[name]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
