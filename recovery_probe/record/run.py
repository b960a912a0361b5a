"""The run directory, opened by anyone. Imports no torch.

RUN/config.toml       resolved settings
RUN/provenance.json   status, versions, device, times
RUN/record.zarr/      the arrays, with names, dimensions and units
RUN/checkpoints/      weights, as folders that transformers can load
RUN/analyses/         what `recovery_probe.analyze` found
RUN/report.html       the same as one page
RUN/lock              there while the run is being written
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from recovery_probe import config, plugins, stats
from recovery_probe.errors import Damaged, InputError, Missing, NotRecorded
from recovery_probe.record import checkpoint, labels, lock, mends, store
from recovery_probe.record.export import Exported
from recovery_probe.record.folder import as_path, checkpoint_folder, checkpoints, is_run
from recovery_probe.record.layout import EPISODE, STEP, TRAINING, Timeline, check_format
from recovery_probe.record.shown import Shown
from recovery_probe.record.trajectory import trajectory
from recovery_probe.seeds import generator
from recovery_probe.settings import Settings

if TYPE_CHECKING:
    from recovery_probe.models import Model


class Run(Exported, Shown):
    """One training run, finished or not, read from its directory as it was when opened.

    `losses` (episodes_done, document), in nats per token: row k is after k episodes, row 0
    before any training, NaN where the run has not got to. Documents 0 … T-1 are trained on;
    the others are held out (coordinate `held_out`).

    Opening and reading raise `Damaged`, an `InputError`, where something is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with store.reading(path / "record.zarr"):
            root = zarr.open_group(path / "record.zarr", mode="r")
            check_format(path, root.attrs.get("format"))
        self.config: Settings = config.read(path / "config.toml")
        with store.reading(path / "provenance.json"):
            text = (path / "provenance.json").read_text("utf-8")
            self.provenance: dict[str, Any] = json.loads(text)
            self.provenance["status"]
        with store.reading(path / "config.toml"):
            if "epochs" not in (path / "config.toml").read_text("utf-8"):
                raise ValueError("it holds no settings")
        # Before any other array, and once: rows that are written meanwhile do not count for this
        # reader. After the status: all rows are there before a run is complete.
        with store.reading(path / "record.zarr"):
            counted: Any = root[f"{TRAINING}/rows_committed"]
            schedule: Any = root[f"{TRAINING}/document_of_episode"]
            self.rows, total = int(counted[()]), schedule.shape[0] + 1
        cut_short = self.provenance["status"] == "complete" and self.rows != total
        if cut_short or not 0 <= self.rows <= total:
            raise Damaged(
                f"{path}: damaged: rows_committed is {self.rows}, where a run of {total - 1} "
                f"episodes that is {self.provenance['status']} has another; bring back a copy, or "
                "train again"
            )

    def refresh(self) -> Run:
        """This run, as its directory is now; of one that is being written, with what has come."""
        path = self.path
        self.__dict__.clear()
        self.__init__(path)  # type: ignore[misc]
        return self

    @functools.cached_property
    def record(self) -> xr.Dataset:
        """What was trained, lazily: losses, schedule, tokens. `xarray.open_datatree` shows the
        whole record."""
        with store.reading(f"{self.path}: record.zarr"):
            return xr.open_zarr(self.path / "record.zarr", group=TRAINING)

    @functools.cached_property
    def losses(self) -> xr.DataArray:
        """(episodes_done, document): mean token cross-entropy, nats. Coordinates `trained_on`,
        `episode`, `epoch` and `within` tell what training did last."""
        return self._counted("losses", "episodes_done", self.rows)

    @functools.cached_property
    def train_loss(self) -> xr.DataArray:
        """(step,): loss of the training document right before each gradient step, nats.
        Coordinates `document`, `episode`, `epoch` and `within` tell which step it is."""
        return self._counted("train_loss", "step", self.episodes_done * self.config.steps)

    def _counted(self, name: str, time: str, rows: int) -> xr.DataArray:
        with store.reading(f"{self.path}: {name}"):
            values = self.record[name].load()
            if not np.isfinite(values[:rows]).all():
                raise ValueError(f"some of its first {rows} rows are not finite")
        counted = xr.DataArray(np.arange(values.sizes[time]) < rows, dims=time)
        taken = frozenset(map(str, values.dims))
        places = self.timeline.labels(time, values[time].values, taken)
        return values.where(counted).assign_attrs(values.attrs).assign_coords(places)

    @functools.cached_property
    def schedule(self) -> xr.DataArray:
        """(episode,): the document of each episode, planned for the whole run."""
        with store.reading(f"{self.path}: document_of_episode"):
            return self.record.document_of_episode.load()

    @property
    def timeline(self) -> Timeline:
        """When what is trained on."""
        T, about = self.config.documents.count, self.record.attrs
        epochs = about.get("episodes_per_epoch", T), tuple(about.get("epoch_lengths", ()))
        return Timeline(self.schedule.values, T, self.config.steps, *epochs)

    @property
    def episodes_done(self) -> int:
        """Episodes whose rows count."""
        return max(0, self.rows - 1)

    @property
    def status(self) -> str:
        """`running`, `complete`, `diverged`, `interrupted`, `failed`; `killed` when it was running
        and nobody writes it any more."""
        status = str(self.provenance["status"])
        return "killed" if status == "running" and not lock.is_locked(self.path) else status

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers for an analysis: a stream of the run's own for each purpose."""
        return generator(astuple(self.config.seed), purpose)

    @property
    def interventions(self) -> tuple[str, ...]:
        """What changed its training, beside documents, model, schedule and optimizer."""
        return self.config.interventions

    @functools.cached_property
    def recorders(self) -> list[str]:
        """The recorders that wrote arrays; each is an attribute too, such as `run.gradients`."""
        with store.reading(f"{self.path}: record.zarr"):
            groups = zarr.open_group(self.path / "record.zarr", mode="r").groups()
            return sorted(name for name, _ in groups if name != TRAINING)

    def recorder(self, name: str) -> xr.Dataset:
        """What a recorder wrote, lazily, as far as episodes are committed. A `module` dimension
        can be selected by `kind`, `block` and `name`: `.sel(kind="mlp.out", block=3)`. `document`
        (`trained_on` where that is a dimension), `episode`, `epoch` and `within` are coordinates of
        `step` and `episodes_done`.

        Raises `Missing`, an `InputError`, when the run has no such recorder.
        """
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name].copy()  # what one reader loads is not kept

    @functools.cached_property
    def _opened(self) -> dict[str, xr.Dataset]:
        """Recorders' datasets, none of their values read; opening one takes 50 ms."""
        return {}

    def _open(self, name: str) -> xr.Dataset:
        if name not in self.recorders:
            off = mends.recorder_off(self.path, self.provenance, name, self.recorders)
            raise Missing(f"{self.path}: {off}")
        with store.reading(f"{self.path}: {name}"):
            self._check_chunks(name)
            dataset = xr.open_zarr(self.path / "record.zarr", group=name)
            M = self.config.steps
            for time, rows in ((STEP, self.episodes_done * M), (EPISODE, self.rows)):
                if time in dataset.coords:
                    dataset = dataset.isel({time: self._which(dataset, time, rows)})
            for n, variable in dataset.variables.items():
                # netCDF knows no float16, and no strings of Zarr's.
                variable.encoding = {"dtype": "float32"} if variable.dtype == "float16" else {}
                if variable.dtype.kind == "T":
                    dataset[n] = variable.astype(object)
            if {"name", "kind", "block"} <= set(dataset.coords):
                dataset = dataset.set_xindex(["name", "kind", "block"], labels.Labels)
        return dataset

    def _which(self, dataset: xr.Dataset, time: str, rows: int) -> NDArray[np.bool_]:
        """Times that count: of an array that covers a stretch, those whose stretch has ended."""
        values = dataset[time].values
        of_stretches = any(a.attrs.get("covers") == "stretch" for a in dataset.values())
        total, stretches = len(self.schedule) * self.config.steps, time == STEP and of_stretches
        ends = np.append(values[1:], total) if stretches else values + 1
        return np.asarray(ends <= rows)

    def _check_chunks(self, group: str) -> None:
        """Raise `ValueError` when chunks that were written are gone. Fast: nothing is read."""
        for name, array in zarr.open_group(self.path / "record.zarr" / group, mode="r").arrays():
            if self.status == "complete" and array.nchunks_initialized < array.nchunks:
                gone = array.nchunks - array.nchunks_initialized
                raise ValueError(f"{gone} of the {array.nchunks} chunks of {name} are gone")

    def check(self) -> None:
        """Read all that was recorded, once. Raises `Damaged`, with the array's name, unless it is
        whole: checksums right, nothing gone, and losses that are numbers."""
        self.losses, self.train_loss  # noqa: B018
        for group in (TRAINING, *self.recorders):
            with store.reading(f"{self.path}: {group}"):
                self._check_chunks(group)
                opened = zarr.open_group(self.path / "record.zarr" / group, mode="r")
                arrays = dict(opened.arrays())
            for name, array in arrays.items():
                with store.reading(f"{self.path}: {group}/{name}"):
                    step = array.chunks[0] if array.ndim else 1
                    for start in range(0, array.shape[0] if array.ndim else 0, step):
                        array[start : start + step]

    def __getattr__(self, name: str) -> xr.Dataset:
        # An installed recorder that was off is no misspelt attribute.
        known = not name.startswith("_") and name in {
            *plugins.installed("recorders"),
            *self.recorders,
        }
        if known:
            try:
                return self.recorder(name)
            except Missing as off:  # so that hasattr answers
                raise NotRecorded(str(off)) from None
        raise AttributeError(f"Run has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.recorders]

    def weight_trajectory(self) -> xr.DataArray:
        """(episodes_done, module, sketch): sketch of the weights minus the untrained weights, the
        running sum of the recorded updates, wherever one ends with an episode. Read an epoch at a
        time, and once."""
        return self._trajectory

    @functools.cached_property
    def _trajectory(self) -> xr.DataArray:
        return trajectory(self)

    def weights_at(self, episodes_done: int) -> dict[str, NDArray[Any]]:
        """Hugging Face name -> weight, after that many episodes: from the checkpoint there (no
        torch), or trained up to there from an earlier one.

        Raises `Missing` when the run has not got so far, `Damaged` when its checkpoint cannot be
        read.
        """
        from safetensors.numpy import load_file

        if episodes_done in self.checkpoints:
            path = self._checkpoint(episodes_done) / "model.safetensors"
            with store.reading(path):
                return load_file(path)
        weights = self.model_at(episodes_done).state_dict()
        return {name: weight.detach().cpu().numpy() for name, weight in weights.items()}

    def model_at(self, episodes_done: int, device: str = "auto") -> Model:
        """The model as it was after that many episodes, bridged, on a device of this machine's,
        whatever the run was trained on: from the checkpoint there, or trained up to there from an
        earlier one, which is said, with the time it takes.

        Raises `Missing` when the run has not got so far, `Damaged` when its checkpoint cannot be
        read.
        """
        if episodes_done in self.checkpoints:
            return self.saved_model(episodes_done, device)
        from recovery_probe.train.replay import training_at

        return training_at(self, episodes_done, device).model

    def saved_model(self, episodes_done: int, device: str = "auto") -> Model:
        """That of the checkpoint after so many episodes. Raises `Missing` when there is none."""
        from recovery_probe import models

        source = replace(self.config.model, source=str(self._checkpoint(episodes_done)))
        return models.load(replace(self.config, model=source, device=device))

    def replay(self, **options: Any) -> Run:
        """Train episodes once more, and add what new hooks and recorders see to the record:
        `train.replay.replay`, whose options these are. Returns this run."""
        from recovery_probe.train.replay import replay

        return replay(self, **options)

    def resume(self, **options: Any) -> Run:
        """Train on from the newest checkpoint, to the end, as if nothing had happened. `options`
        are those of `fit`: `hooks` and `interventions` that were objects are given again. Returns
        this run, as it is then."""
        from recovery_probe.train.fitting import fit
        from recovery_probe.train.plan import Point

        fit([Point(self.path, self.config)], resume=True, **options)
        return self.refresh()

    @property
    def checkpoints(self) -> list[int]:
        """Episodes done at every checkpoint, in order."""
        return checkpoints(self.path)

    def _checkpoint(self, episodes_done: int) -> Path:
        known = checkpoints(self.path)
        if episodes_done not in known:
            why = mends.no_checkpoint(self.provenance, episodes_done, known)
            raise Missing(f"{self.path}: {why}")
        folder = checkpoint_folder(self.path, episodes_done)
        if (folder / checkpoint.STATE).exists() and (wrong := checkpoint.damage(folder)):
            raise Damaged(
                f"{folder}: damaged: {wrong}; {mends.verify(self.path)}, or bring back a copy"
            )
        return folder

    @property
    def controls(self) -> list[Run]:
        """The controls trained with this run, those that are there."""
        return self._beside("controls")

    @property
    def twins(self) -> list[Run]:
        """The same run again, from weights changed by one unit in the last place: those that were
        trained with it and are there. What they differ in means nothing."""
        return self._beside("twins")

    def _beside(self, name: str) -> list[Run]:
        paths = [Path(os.path.normpath(self.path / name)) for name in self.provenance.get(name, [])]
        return [open_run(path) for path in paths if is_run(path)]

    @property
    def declared(self) -> bool:
        """Whether the outcome in its settings is the one that was declared before it began."""
        return self.provenance.get("outcome") == config.declared(self.config)

    @property
    def recovery(self) -> float:
        """Recovery so far, of the mean loss by age in the latest waits; NaN before any."""
        trained_on = self.losses.values[:, : self.timeline.documents]
        return stats.recovery_so_far(trained_on, self.schedule.values)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run directory, also one that is still being written or was killed.

    Raises `InputError` when there is none at `path`.
    """
    folder = as_path(path)
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


def open_runs(path: str | os.PathLike[str]) -> list[Run]:
    """The run at `path`, or the one that lies in this directory with its controls and twins, and
    the controls.

    Raises `InputError` where there is none, or more than one.
    """
    folder = as_path(path)
    inside = [] if is_run(folder) or not folder.is_dir() else sorted(folder.iterdir())
    runs = [Run(f) for f in inside if is_run(f)]
    beside = {r.path.resolve() for run in runs for r in (*run.controls, *run.twins)}
    mains = [run for run in runs if run.path.resolve() not in beside]
    if len(mains) == 1 and len(runs) <= 1 + len(mains[0].controls) + len(mains[0].twins):
        return [*mains, *mains[0].controls]
    return [open_run(folder)]
