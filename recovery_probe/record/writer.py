"""Writes a run directory, one committed episode at a time. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray

from recovery_probe import config
from recovery_probe.documents import Documents
from recovery_probe.errors import InputError
from recovery_probe.record import labels, store
from recovery_probe.record.blank import about, create, lay_out
from recovery_probe.record.folder import checkpoint_folder, checkpoints, is_run
from recovery_probe.record.layout import TRAINING, Array, Timeline
from recovery_probe.record.run import Run, open_run
from recovery_probe.settings import Settings

PACKAGES = ("recovery_probe", "torch", "transformers", "transformer-lens", "numpy", "zarr")


def check_vacant(path: Path, overwrite: bool) -> None:
    """Raise `InputError` unless a run may be written at `path`. Only a run is ever replaced."""
    if path.is_dir() and any(path.iterdir()):
        if not is_run(path):
            raise InputError(f"{path}: exists and is not a run: choose another --out")
        if not overwrite:
            raise InputError(
                f"{path}: holds a run already: choose another --out, or add --overwrite "
                "(overwrite=True), which deletes all that is in it"
            )
        if (path / "lock").exists():  # somebody writes there, or was killed
            store.lock(path, holder(path)).release()
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

    def __init__(self, folder: Path, path: Path, timeline: Timeline, lock: FileLock) -> None:
        self.aside, self.path, self.timeline, self.lock = folder, path, timeline, lock
        self.provenance: dict[str, Any] = {}
        self._opened: dict[str, Any] = {}
        self.in_place = folder == path
        self.rows = 0  # committed

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
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}-", dir=path.parent))
        writer = cls(aside, path, timeline, store.lock(aside, "another process"))
        try:
            aside.chmod(0o777 & ~_umask())
            (aside / "config.toml").write_text(config.to_toml(settings), encoding="utf-8")
            writer.provenance = {
                "status": "running",
                "started": store.now(),
                **_process(),
                **provenance,
                **_versions(),
            }
            store.write_json(aside / "provenance.json", writer.provenance)
            lay_out(aside / "record.zarr", settings, documents, timeline)
        except BaseException:
            writer.__exit__()
            raise
        return writer

    @classmethod
    def reopen(cls, path: Path, done: int) -> Self:
        """Go on with a run after `done` episodes, of those it has committed: what it has of later
        ones does not count any more, and will be written over; checkpoints after them go.

        Raises `InputError` while somebody writes there, or where it has not got so far.
        """
        lock = store.lock(path, open_run(path).holder)
        try:
            run = Run(path)
            if not 0 <= done <= run.episodes_done:
                raise InputError(f"{path}: has {run.episodes_done} episodes, and not {done}")
            writer = cls(path, path, run.timeline, lock)
            writer.provenance = run.provenance | {"status": "running", **_process()}
            store.write_json(path / "provenance.json", writer.provenance)
            writer.group = zarr.open_group(writer.record, mode="r+", use_consolidated=False)
            writer.group.attrs["status"] = "running"
            store.consolidate(writer.record)
            writer._count(done + 1)
            for later in checkpoints(path):
                if later > done:
                    shutil.rmtree(checkpoint_folder(path, later))
        except BaseException:
            (path / "lock").unlink(missing_ok=True)
            lock.release()
            raise
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.in_place:
            (self.path / "lock").unlink(missing_ok=True)
        else:
            shutil.rmtree(self.aside, ignore_errors=True)
        self.lock.release()

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
        if is_run(self.path):
            who = holder(self.path)
            if (self.path / "lock").exists():
                print(f"note: {self.path} was left by {who}, which is gone", file=sys.stderr)
            with store.lock(self.path, who):
                shutil.rmtree(self.path)
        try:
            os.rename(self.aside, self.path)
        except OSError as error:
            raise InputError(
                f"{self.path}: another run came there first ({error.strerror}): choose another "
                "--out"
            ) from None
        self.in_place = True
        self.group = zarr.open_group(self.record, mode="r+", use_consolidated=False)

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
        T, M = self.timeline.documents, self.timeline.steps
        taken = frozenset([*arrays, *coords, *(d for a in arrays.values() for d in a.dims)])
        described: dict[str, Any] = {
            n: (dims, values, about(labels.ABOUT[n])) if n in labels.ABOUT else (dims, values)
            for n, (dims, values) in coords.items()
        }
        sizes = {d: n for a in arrays.values() for d, n in zip(a.dims, a.shape, strict=True)}
        for dimension, size in sizes.items():
            if dimension in labels.NUMBERED and dimension not in described:
                described[dimension] = (dimension, np.arange(size), about(labels.ABOUT[dimension]))
        for time, values in due.items():
            described[time] = (time, values, about(labels.ABOUT[time]))
            described |= self.timeline.labels(time, values, taken)
        store.write_zarr(xr.Dataset(coords=described, attrs=dict(attrs)), self.record, group=name)
        group = zarr.open_group(self.record / name, mode="r+", use_consolidated=False)
        for array_name, array in arrays.items():
            # A chunk holds whole episodes: as many as stay small, since a commit rewrites it.
            rows, per = len(due[array.time]), M if array.time == "step" else 1
            dtype = np.dtype(array.dtype)
            size = int(np.prod(array.shape)) * dtype.itemsize
            episodes = max(1, min(T, 2**18 // max(1, size * per)))
            create(
                group,
                array_name,
                (rows, *array.shape),
                (min(rows, episodes * per), *array.shape),
                dtype.name,
                (array.time, *array.dims),
                about(array.description, array.units) | {"covers": array.covers},
            )

    def write(self, group: str, name: str, start: int, rows: NDArray[Any]) -> None:
        """Rows of a recorder's array, from row `start`; they count once `commit` is called."""
        self._array(f"{group}/{name}")[start : start + len(rows)] = rows

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        """Row `row` of the losses (after that many episodes), and the training losses of the
        episode that led to it."""
        if train_loss:
            start = (row - 1) * self.timeline.steps
            written = self._array(f"{TRAINING}/train_loss")
            written[start : start + len(train_loss)] = np.asarray(train_loss)
        self._array(f"{TRAINING}/losses")[row] = np.asarray(losses)
        self._count(row + 1)

    def _count(self, rows: int) -> None:
        self._array(f"{TRAINING}/rows_committed")[...] = rows
        self.rows = rows

    def finish(self, status: str, message: str = "", **facts: Any) -> None:
        """Say how the run ended, in its provenance and in the record's own attributes."""
        self.provenance |= {"status": status, "message": message, "finished": store.now(), **facts}
        store.write_json(self.path / "provenance.json", self.provenance)
        self.group.attrs["status"] = status
        store.consolidate(self.record)

    def _array(self, name: str) -> Any:
        if name not in self._opened:
            array: Any = self.group[name]
            self._opened[name] = array.with_config(store.KEEP_EMPTY)
        return self._opened[name]


def holder(path: Path) -> str:
    """Who writes a run directory, or wrote it, as far as its provenance can be read."""
    try:
        return Run(path).holder
    except InputError:
        return "another process"


def _process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _versions() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], capture_output=True
        )
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = head.stdout.strip() if tracked.returncode == 0 else ""
    except OSError:  # no git here
        commit = ""
    return {"versions": versions, "commit": commit or None, "platform": platform.platform()}
