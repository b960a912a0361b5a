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
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray

from recovery_probe import config, labels, store
from recovery_probe.config import Settings
from recovery_probe.errors import InputError
from recovery_probe.run import Run, is_run

if TYPE_CHECKING:
    from recovery_probe.documents import Documents
    from recovery_probe.recorders import Array

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
            store.lock(path, _holder(path)).release()
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

    def __init__(
        self, aside: Path, path: Path, settings: Settings, schedule: NDArray[np.int32]
    ) -> None:
        self.aside, self.path, self.settings, self.schedule = aside, path, settings, schedule
        self.provenance: dict[str, Any] = {}
        self.lock = store.lock(aside, "another process")
        self._opened: dict[str, Any] = {}
        self.in_place = False
        self.rows = 0  # committed

    @classmethod
    def create(
        cls,
        path: Path,
        settings: Settings,
        documents: Documents,
        schedule: NDArray[np.int32],
        *,
        provenance: dict[str, Any],
    ) -> Self:
        """Lay out a new run aside; `put_in_place` moves it to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}-", dir=path.parent))
        writer = cls(aside, path, settings, schedule)
        try:
            aside.chmod(0o777 & ~_umask())
            (aside / "config.toml").write_text(config.to_toml(settings), encoding="utf-8")
            writer.provenance = {
                "status": "running",
                "started": store.now(),
                "pid": os.getpid(),
                "host": socket.gethostname(),
                **provenance,
                **_versions(),
            }
            store.write_json(aside / "provenance.json", writer.provenance)
            _lay_out(aside / "record.zarr", settings, documents, schedule)
        except BaseException:
            writer.__exit__()
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
        if is_run(self.path):
            holder = _holder(self.path)
            if (self.path / "lock").exists():
                print(f"note: {self.path} was left by {holder}, which is gone", file=sys.stderr)
            with store.lock(self.path, holder):
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
    ) -> None:
        """Lay out a recorder's arrays for the whole run, in a group of its own."""
        T, M = self.settings.documents.count, self.settings.steps
        taken = frozenset([*arrays, *coords, *(d for a in arrays.values() for d in a.dims)])
        described: dict[str, Any] = {
            n: (dims, values, _about(labels.ABOUT[n])) if n in labels.ABOUT else (dims, values)
            for n, (dims, values) in coords.items()
        }
        sizes = {d: n for a in arrays.values() for d, n in zip(a.dims, a.shape, strict=True)}
        for dimension, size in sizes.items():
            if dimension in labels.NUMBERED and dimension not in described:
                described[dimension] = (dimension, np.arange(size), _about(labels.ABOUT[dimension]))
        for time, values in due.items():
            described[time] = (time, values, _about(labels.ABOUT[time]))
            described |= labels.time_labels(time, values, self.schedule, T, M, taken)
        store.write_zarr(xr.Dataset(coords=described), self.record, group=name)
        group = zarr.open_group(self.record / name, mode="r+", use_consolidated=False)
        for array_name, array in arrays.items():
            # A chunk holds whole episodes: as many as stay small, since a commit rewrites it.
            rows, per = len(due[array.time]), M if array.time == "step" else 1
            dtype = np.dtype(array.dtype)
            size = int(np.prod(array.shape)) * dtype.itemsize
            episodes = max(1, min(T, 2**18 // max(1, size * per)))
            _create(
                group,
                array_name,
                (rows, *array.shape),
                (min(rows, episodes * per), *array.shape),
                dtype.name,
                (array.time, *array.dims),
                _about(array.description, array.units) | {"covers": array.covers},
            )
        store.consolidate(self.record)

    def write(self, group: str, name: str, start: int, rows: NDArray[Any]) -> None:
        """Rows of a recorder's array, from row `start`; they count once `commit` is called."""
        self._array(f"{group}/{name}")[start : start + len(rows)] = rows

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        """Row `row` of the losses (after that many episodes), and the training losses of the
        episode that led to it."""
        if train_loss:
            start = (row - 1) * self.settings.steps
            self._array("training/train_loss")[start : start + len(train_loss)] = np.asarray(
                train_loss
            )
        self._array("training/losses")[row] = np.asarray(losses)
        self._array("training/rows_committed")[...] = row + 1
        self.rows = row + 1

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


def _holder(path: Path) -> str:
    """Who writes a run directory, or wrote it, as far as its provenance can be read."""
    try:
        return Run(path).holder
    except InputError:
        return "another process"


def _lay_out(
    path: Path, settings: Settings, documents: Documents, schedule: NDArray[np.int32]
) -> None:
    """The arrays of a run that has not started, in the group `training`. The root holds none: a
    group's times need not be those of another, and xarray's trees want them alike from parent to
    child."""
    T, E, M = settings.documents.count, settings.epochs, settings.steps
    rows, total = E * T + 1, len(documents.texts)
    episode = np.arange(E * T)
    about = labels.ABOUT
    static = xr.Dataset(
        {
            "document_of_episode": ("episode", schedule, _about("document each episode trains on")),
            "tokens": (
                ("document", "position"),
                documents.tokens,
                _about("token ids; 0 past a document's length"),
            ),
            "length": ("document", documents.lengths, _about("real tokens", "tokens")),
            "name": ("document", _clean([t.name for t in documents.texts]), _about("its source's")),
            "digest": ("document", documents.digests, _about("SHA-256 of the text")),
            "excerpt": (
                "document",
                _clean([t.text[:200] for t in documents.texts]),
                _about("first 200 characters"),
            ),
        },
        coords={
            "document": ("document", np.arange(total), _about(about["document"])),
            "held_out": ("document", np.arange(total) >= T, _about("never trained on")),
            "position": (
                "position",
                np.arange(documents.tokens.shape[1]),
                _about(about["position"]),
            ),
            "episodes_done": ("episodes_done", np.arange(rows), _about(about["episodes_done"])),
            "episode": ("episode", episode, _about(about["episode"])),
            "epoch": ("episode", episode // T + 1, _about(about["epoch"])),
            "step": ("step", np.arange(E * T * M), _about(about["step"])),
        },
        attrs={
            "description": "only the first rows_committed rows of losses, and the steps of that "
            "many episodes less one, count",
        },
    )
    store.write_zarr(static, path, group="training")
    group = zarr.open_group(path / "training", mode="r+", use_consolidated=False)
    _create(
        group,
        "losses",
        (rows, total),
        (min(T, rows), total),
        "float64",
        ("episodes_done", "document"),
        _about("mean token cross-entropy after each episode; row 0 untrained", "nats"),
    )
    _create(
        group,
        "train_loss",
        (E * T * M,),
        (M * T,),
        "float64",
        ("step",),
        _about("loss of the training document right before each step", "nats"),
    )
    counted = _about("rows of losses that count, from the start", "rows")
    _create(group, "rows_committed", (), (), "int64", (), counted)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root.attrs.update(
        {
            "description": "recovery_probe run: what was trained is in the group training, what a "
            "recorder wrote in a group of its name",
            "status": "running",
            "recovery_probe": importlib.metadata.version("recovery_probe"),
            "seed": settings.seed,
            "epochs": E,
            "documents": T,
            "steps_per_episode": M,
            "optimizer": settings.optimizer.name,
            "lr": settings.optimizer.lr,
            "schedule": settings.schedule.kind,
        }
    )
    store.consolidate(path)


def _create(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    dims: tuple[str, ...],
    attributes: dict[str, Any],
) -> None:
    """An array without values: NaN, or 0 for what is no real number."""
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=np.nan if np.issubdtype(np.dtype(dtype), np.floating) else 0,
        dimension_names=dims,
        attributes=attributes,
        compressors=store.COMPRESSORS,
        config=store.KEEP_EMPTY,
    )


def _about(description: str, units: str = "1") -> dict[str, Any]:
    return {"description": description, "units": units}


def _clean(values: list[str]) -> list[str]:
    """Without the lone surrogates that text read from JSON can hold and UTF-8 cannot."""
    return [v.encode("utf-8", "replace").decode("utf-8") for v in values]


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
