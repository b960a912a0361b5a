"""The run directory: written while training, opened by anyone. Imports no torch.

RUN/config.toml       resolved settings
RUN/provenance.json   status, versions, device, times
RUN/record.zarr/      the arrays, with names, dimensions and units
RUN/checkpoints/      weights, as folders that transformers can load
RUN/analyses/         what `recovery_probe.analyze` found
RUN/report.html       the same as one page
"""

from __future__ import annotations

import datetime
import functools
import html
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray

from recovery_probe import config, stats
from recovery_probe.config import Settings
from recovery_probe.errors import InputError, Missing

if TYPE_CHECKING:
    from recovery_probe.documents import Documents
    from recovery_probe.models import Model
    from recovery_probe.recorders import Array

PACKAGES = ("recovery_probe", "torch", "transformers", "transformer-lens", "numpy", "zarr")


class Run:
    """One training run, finished or not, read from its directory.

    `losses` (episodes_done, document), in nats per token: row k is after k episodes, row 0
    before any training, NaN where the run has not got to. Documents 0 … T-1 are trained on;
    the others are held out (coordinate `held_out`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: Settings = config.load(path / "config.toml")
        self.provenance: dict[str, Any] = json.loads((path / "provenance.json").read_text("utf-8"))

    @functools.cached_property
    def record(self) -> xr.Dataset:
        """Everything recorded, lazily, as `xarray.open_zarr` shows it."""
        return xr.open_zarr(self.path / "record.zarr")

    @functools.cached_property
    def losses(self) -> xr.DataArray:
        """(episodes_done, document): mean token cross-entropy, nats."""
        losses = self.record.losses.load()
        rows = np.arange(losses.sizes["episodes_done"])
        counted = xr.DataArray(rows < self._rows, dims="episodes_done")
        return losses.where(counted).assign_attrs(losses.attrs)

    @functools.cached_property
    def train_loss(self) -> xr.DataArray:
        """(step,): loss of the training document right before each gradient step, nats."""
        loss = self.record.train_loss.load()
        counted = xr.DataArray(
            np.arange(loss.sizes["step"]) < self.episodes_done * self.config.steps, dims="step"
        )
        return loss.where(counted).assign_attrs(loss.attrs)

    @functools.cached_property
    def schedule(self) -> xr.DataArray:
        """(episode,): the document of each episode, planned for the whole run."""
        return self.record.document_of_episode.load()

    @property
    def _rows(self) -> int:
        return int(self.record.rows_committed)

    @property
    def episodes_done(self) -> int:
        """Episodes whose rows count."""
        return max(0, self._rows - 1)

    @property
    def status(self) -> str:
        """`running` (or killed), `complete`, `diverged` or `interrupted`."""
        return str(self.provenance["status"])

    @property
    def recorders(self) -> list[str]:
        """The recorders that wrote arrays; each is an attribute too, such as `run.gradients`."""
        return sorted(
            name for name, _ in zarr.open_group(self.path / "record.zarr", mode="r").groups()
        )

    def recorder(self, name: str) -> xr.Dataset:
        """What a recorder wrote, lazily, as far as episodes are committed. A `module` dimension
        is indexed by `kind`, `block` and `name`: `.sel(kind="mlp.out", block=3)`.

        Raises `Missing`, an `InputError`, when the run has no such recorder.
        """
        if name not in self.recorders:
            raise Missing(
                f"{self.path}: recorder {name} was off, on were "
                f"{', '.join(self.recorders) or 'none'}; "
                f"train again with --record {name}"
            )
        dataset = xr.open_zarr(self.path / "record.zarr", group=name)
        if "step" in dataset.coords:
            dataset = dataset.isel(
                step=dataset.step.values < self.episodes_done * self.config.steps
            )
        if "episodes_done" in dataset.coords:
            dataset = dataset.isel(episodes_done=dataset.episodes_done.values < self._rows)
        if "module" in dataset.dims:
            levels = ["kind", "block", "name"]
            plain = {n: ("module", dataset[n].values.astype(object)) for n in ("kind", "name")}
            dataset = dataset.assign_coords(plain).set_index(module=levels)
        return dataset

    def __getattr__(self, name: str) -> xr.Dataset:
        if not name.startswith("_") and name in config.WATCHING:
            return self.recorder(name)
        raise AttributeError(f"Run has no attribute {name!r}")

    def weight_trajectory(self) -> xr.DataArray:
        """(episodes_done, module, sketch): sketch of the weights minus the untrained weights, the
        running sum of the recorded updates, wherever one ends with an episode. Read an epoch at a
        time, and once."""
        return self._trajectory

    @functools.cached_property
    def _trajectory(self) -> xr.DataArray:
        deltas = self.recorder("weight_deltas").sketched
        M, done = self.config.steps, self.episodes_done
        # The step after the last of each recorded stretch.
        ends = np.append(deltas.step.values[1:], done * M)[: deltas.sizes["step"]]
        at = np.zeros(deltas.shape[1:])
        rows, times = [at], [0]
        for start in range(0, len(ends), M * self.config.documents.count):
            these = slice(start, start + M * self.config.documents.count)
            moved = at + deltas[these].values.cumsum(axis=0, dtype="float64")
            whole = ends[these] % M == 0
            rows += list(moved[whole])
            times += (ends[these][whole] // M).tolist()
            at = moved[-1]
        coords = {"episodes_done": times, "module": deltas.module}
        dims = ("episodes_done", "module", "sketch")
        return xr.DataArray(np.stack(rows), coords, dims, attrs=deltas.attrs)

    def weights_at(self, episodes_done: int) -> dict[str, NDArray[Any]]:
        """Hugging Face name -> weight, from the checkpoint after that many episodes; no torch.

        Raises `Missing` when there is none, naming those there are.
        """
        from safetensors.numpy import load_file

        return load_file(self._checkpoint(episodes_done) / "model.safetensors")

    def model_at(self, episodes_done: int) -> Model:
        """The model with the weights after that many episodes, bridged and on its device.

        Raises `Missing` when there is no such checkpoint.
        """
        from recovery_probe import models

        source = replace(self.config.model, source=str(self._checkpoint(episodes_done)))
        return models.load(replace(self.config, model=source))

    def _checkpoint(self, episodes_done: int) -> Path:
        known = checkpoints(self.path)
        if episodes_done not in known:
            raise Missing(
                f"{self.path}: no checkpoint after {episodes_done} episodes; there are some after "
                f"{', '.join(map(str, known)) or 'none'}"
            )
        return checkpoint_folder(self.path, episodes_done)

    @property
    def controls(self) -> list[Run]:
        """The matched control trained with this run, when there is one."""
        name = self.provenance.get("control")
        path = Path(os.path.normpath(self.path / name)) if name else None
        return [open_run(path)] if path and is_run(path) else []

    @property
    def recovery(self) -> float:
        """Recovery so far: mean over the documents of each one's latest score; NaN before any."""
        return recovery_so_far(self.losses.values, self.schedule.values)

    def summary(self) -> dict[str, str]:
        """What the run is, in a few words each."""
        c, m = self.config, self.config.model
        sizes = f"{m.architecture}, {m.depth} blocks, {m.width} wide, random init ({m.init})"
        total = len(self.schedule)
        size = sum(f.stat().st_size for f in (self.path / "record.zarr").rglob("*") if f.is_file())
        message = self.provenance.get("message")
        return {
            "run": str(self.path),
            "status": self.status + (f": {message}" if message else ""),
            "progress": f"{self.episodes_done} of {total} episodes",
            "model": sizes if m.source == "random" else m.source,
            "documents": f"{c.documents.count} + {c.documents.held_out} held out, "
            f"{c.documents.tokens} tokens, {c.documents.source}",
            "schedule": f"{c.schedule.kind}, {c.epochs} epochs, {c.steps} steps per episode",
            "optimizer": f"{c.optimizer.name}, lr {c.optimizer.lr:g}"
            + (", state reset each episode" if c.optimizer.reset else ""),
            "recorders": ", ".join([*self.recorders, *self.provenance.get("hooks", [])]) or "none",
            "recovery so far": "none yet" if np.isnan(self.recovery) else f"{self.recovery:.2f}",
            "record": f"{size / 1e6:.1f} MB",
        }

    def __repr__(self) -> str:
        return "\n".join(f"{name:>16}  {value}" for name, value in self.summary().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.summary().items()
        )
        return f"<table>{rows}</table>"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run directory, also one that is still being written or was killed.

    Raises `InputError` when there is none at `path`.
    """
    folder = Path(path)
    if is_run(folder):
        return Run(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run directory")
    inside = sorted(f.name for f in folder.iterdir() if is_run(f))
    mend = (
        f"it holds the runs {', '.join(inside)}: name one of them"
        if inside
        else ("it has no config.toml and record.zarr")
    )
    raise InputError(f"{folder}: not a run; {mend}")


def is_run(path: Path) -> bool:
    """Whether a directory has what every run has."""
    return all((path / name).exists() for name in ("config.toml", "provenance.json", "record.zarr"))


def checkpoint_folder(run: Path, episodes_done: int) -> Path:
    """Where the weights after that many episodes lie."""
    return run / "checkpoints" / f"episodes-{episodes_done:05d}"


def checkpoints(run: Path) -> list[int]:
    """Episodes done at every checkpoint of a run, in order."""
    folders = (run / "checkpoints").glob("episodes-*")
    return sorted(int(f.name.split("-")[1]) for f in folders if not f.name.endswith(".partial"))


def check_vacant(path: Path, overwrite: bool) -> None:
    """Raise `InputError` unless a run may be written at `path`. Only a run is ever replaced."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_run(path):
        raise InputError(f"{path}: exists and is not a run: choose another --out")
    if not overwrite:
        raise InputError(f"{path}: holds a run already: choose another --out, or add --overwrite")


def recovery_so_far(losses: NDArray[Any], schedule: NDArray[Any]) -> float:
    """Mean over documents of each one's latest recovery score; NaN when there is none."""
    scores, _ = stats.recovery_per_document(losses, schedule)
    latest = [column[np.isfinite(column)][-1:] for column in scores.T]
    return float(stats.mean_of_counted(np.concatenate([*latest, [np.nan]])))


class Writer:
    """Writes a run directory, one committed episode at a time.

    The whole record is laid out before training, then filled along time. `rows_committed` is
    written last: what is not counted there does not exist for a reader.
    """

    def __init__(self, path: Path, settings: Settings, provenance: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.provenance = provenance
        self.group = zarr.open_group(path / "record.zarr", mode="r+", use_consolidated=False)
        self._opened: dict[str, Any] = {}

    @classmethod
    def create(
        cls,
        path: Path,
        settings: Settings,
        documents: Documents,
        schedule: NDArray[np.int32],
        *,
        provenance: dict[str, Any],
        overwrite: bool = False,
    ) -> Self:
        """Lay out a new run, aside, and put it in place when whole.

        Raises `InputError` where `check_vacant` does.
        """
        check_vacant(path, overwrite)
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "config.toml").write_text(config.to_toml(settings), encoding="utf-8")
        provenance = {"status": "running", "started": _now(), **provenance, **_versions()}
        _write_json(partial / "provenance.json", provenance)
        _lay_out(partial / "record.zarr", settings, documents, schedule)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
        return cls(path, settings, provenance)

    def add_group(
        self,
        name: str,
        arrays: Mapping[str, Array],
        coords: Mapping[str, tuple[str | tuple[str, ...], Any]],
        due: Mapping[Any, NDArray[np.int64]],
    ) -> None:
        """Lay out a recorder's arrays for the whole run, in a group of its own."""
        path = self.path / "record.zarr"
        write_zarr(xr.Dataset(coords={**coords, **due}), path, group=name)
        group = zarr.open_group(path / name, mode="r+")
        for array_name, array in arrays.items():
            # A chunk holds whole episodes: as many as stay small, since a commit rewrites it.
            rows, M = len(due[array.time]), self.settings.steps if array.time == "step" else 1
            size = int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
            episodes = max(1, min(self.settings.documents.count, 2**18 // max(1, size * M)))
            group.create_array(
                array_name,
                shape=(rows, *array.shape),
                chunks=(min(rows, episodes * M), *array.shape),
                dtype=array.dtype,
                fill_value=np.nan if np.dtype(array.dtype).kind == "f" else 0,
                dimension_names=(array.time, *array.dims),
                attributes={**_about(array.description, array.units), "covers": array.covers},
            )
        _consolidate(path)

    def write(self, group: str, name: str, start: int, rows: NDArray[Any]) -> None:
        """Rows of a recorder's array, from row `start`; they count once `commit` is called."""
        self._array(f"{group}/{name}")[start : start + len(rows)] = rows

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        """Row `row` of the losses (after that many episodes), and the training losses of the
        episode that led to it."""
        if train_loss:
            start = (row - 1) * self.settings.steps
            self._array("train_loss")[start : start + len(train_loss)] = np.asarray(train_loss)
        self._array("losses")[row] = np.asarray(losses)
        self._array("rows_committed")[...] = row + 1

    def finish(self, status: str, message: str = "", **facts: Any) -> None:
        """Say how the run ended, in its provenance and in the record's own attributes."""
        self.provenance |= {"status": status, "message": message, "finished": _now(), **facts}
        _write_json(self.path / "provenance.json", self.provenance)
        self.group.attrs["status"] = status
        _consolidate(self.path / "record.zarr")

    def _array(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = self.group[name]
        return self._opened[name]


def _lay_out(
    path: Path, settings: Settings, documents: Documents, schedule: NDArray[np.int32]
) -> None:
    """The arrays of a run that has not started."""
    T, E, M = settings.documents.count, settings.epochs, settings.steps
    rows, total = E * T + 1, len(documents.texts)
    episode = np.arange(E * T)
    static = xr.Dataset(
        {
            "document_of_episode": ("episode", schedule, _about("document each episode trains on")),
            "tokens": (
                ("document", "position"),
                documents.tokens,
                _about("token ids; 0 past a document's length"),
            ),
            "length": ("document", documents.lengths, _about("real tokens", "tokens")),
            "name": ("document", _clean([t.name for t in documents.texts])),
            "digest": ("document", documents.digests, _about("SHA-256 of the text")),
            "excerpt": (
                "document",
                _clean([t.text[:200] for t in documents.texts]),
                _about("first 200 characters"),
            ),
        },
        coords={
            "document": np.arange(total),
            "held_out": ("document", np.arange(total) >= T, _about("never trained on")),
            "episodes_done": np.arange(rows),
            "episode": episode,
            "epoch": ("episode", episode // T + 1, _about("first epoch is 1")),
            "step": np.arange(E * T * M),
        },
        attrs={
            "description": "recovery_probe run; only the first rows_committed rows of losses, and "
            "the steps of that many episodes less one, count",
            "status": "running",
        },
    )
    write_zarr(static, path)
    group = zarr.open_group(path, mode="r+")
    group.create_array(
        "losses",
        shape=(rows, total),
        chunks=(min(T, rows), total),
        dtype="float64",
        fill_value=np.nan,
        dimension_names=("episodes_done", "document"),
        attributes=_about("mean token cross-entropy after each episode; row 0 untrained", "nats"),
    )
    group.create_array(
        "train_loss",
        shape=(E * T * M,),
        chunks=(M * T,),
        dtype="float64",
        fill_value=np.nan,
        dimension_names=("step",),
        attributes=_about("loss of the training document right before each step", "nats"),
    )
    group.create_array(
        "rows_committed",
        shape=(),
        dtype="int64",
        fill_value=0,
        dimension_names=(),
        attributes=_about("rows of losses that count, from the start", "rows"),
    )
    _consolidate(path)


def _about(description: str, units: str = "1") -> dict[str, Any]:
    return {"description": description, "units": units}


def _clean(values: list[str]) -> list[str]:
    """Without the lone surrogates that text read from JSON can hold and UTF-8 cannot."""
    return [v.encode("utf-8", "replace").decode("utf-8") for v in values]


def write_zarr(dataset: xr.Dataset, path: Path, group: str | None = None) -> None:
    """A new Zarr store, or a new group in one. Strings get variable length, which Zarr 3
    specifies; fixed length it does not."""
    strings = (n for n, v in dataset.variables.items() if v.dtype.kind == "U")
    text = {name: {"dtype": np.dtypes.StringDType()} for name in strings}
    dataset.to_zarr(path, group=group, mode="w-", zarr_format=3, consolidated=False, encoding=text)
    _consolidate(path)


def _consolidate(path: Path) -> None:
    with warnings.catch_warnings():
        # Zarr says that not every reader knows consolidated metadata. xarray does, asks for it
        # first, and warns when it is missing; readers that do not know it lose nothing.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


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
