"""For authors of plug-ins: a toy run, and what every recorder must do."""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from recovery_probe.config import preset
from recovery_probe.record.run import Run, open_run
from recovery_probe.settings import Settings


def toy_settings(**changes: Any) -> Settings:
    """Settings of a run that trains in a second: 2 blocks, T = 5, H = 2, M = 3, E = 3."""
    values: dict[str, Any] = {
        "epochs": 3,
        "steps": 3,
        "documents": {"count": 5, "tokens": 24, "held_out": 2, "min_tokens": 24},
        "model": {"depth": 2, "width": 32, "heads": 2, "vocabulary": 512},
    }
    for key, change in changes.items():
        both = isinstance(change, dict) and key in values
        values[key] = {**values[key], **change} if both else change
    return preset("quickstart", **values)


@functools.cache
def toy_run(control: bool = False) -> Run:
    """A tiny cyclic run with every default recorder, trained once in a process (or, with
    `control`, its shuffled twin). It lies in a temporary folder that goes with the process."""
    if control:
        return toy_run().controls[0]
    from recovery_probe.train.fitting import fit

    return fit(toy_settings(), _temporary() / "toy", control="shuffled")


def check_recorder(recorder: Any, **changes: Any) -> xr.Dataset:
    """Train a toy run with a recorder (a class, or one with its settings) and without any, and
    raise `AssertionError` unless it

    - wrote exactly what its layout announced, a row at every time that is due, none missing;
    - gave every array a description and units;
    - wrote the same at a time whether or not it was asked at the times between;
    - left training as it was, bit for bit, and no hook behind.

    `changes` are settings, as `recovery_probe.preset` takes them. Returns what it wrote.
    """
    from recovery_probe.train.fitting import fit

    folder = _temporary()
    settings = toy_settings(recorders=[], **changes)
    plain = fit(settings, folder / "plain")
    starts: list[tuple[Any, Any]] = []

    def start(layout: Any, training: Any) -> Any:
        starts.append((layout, training))
        return layout

    run = fit(settings, folder / "watched", hooks=[_started(recorder, start)])
    assert np.array_equal(plain.losses, run.losses), f"{recorder.name} changed training"
    ((layout, training),) = starts
    points = training.model.bridge.hook_dict
    left = [n for n, p in points.items() if p.fwd_hooks or p.bwd_hooks]
    assert not left, f"{recorder.name} left hooks at {left[:3]}"
    if not layout.arrays:
        return xr.Dataset()
    dataset = open_run(run.path).recorder(recorder.name)
    assert set(dataset.data_vars) == set(layout.arrays), "arrays are not those announced"
    for name, array in layout.arrays.items():
        written = dataset[name]
        assert written.dims == (array.time, *array.dims), f"{name}: dimensions {written.dims}"
        assert written.shape[1:] == array.shape, f"{name}: shape {written.shape}"
        assert written.dtype == array.dtype, f"{name}: dtype {written.dtype}"
        assert written.attrs.get("description"), f"{name}: no description"
        assert written.attrs.get("units"), f"{name}: no units"
        if np.issubdtype(written.dtype, np.floating):
            given = np.isfinite(written.values.reshape(len(written), -1)).any(axis=1)
            assert given.all(), f"{name}: no value at {written[array.time].values[~given][:3]}"
    _check_times(recorder, layout, settings, dataset, folder / "thinned")
    return dataset


def _check_times(
    recorder: Any, layout: Any, settings: Settings, dataset: xr.Dataset, path: Path
) -> None:
    """Every other row of a moment is the same when the others are never asked for: a row that was
    left over from another time is not."""
    from recovery_probe.train.fitting import fit

    moments = [name for name, array in layout.arrays.items() if array.covers == "moment"]
    if recorder.sees_every_step or not moments:
        return

    def half(every: str) -> str:
        count, _, unit = every.rpartition(" ")
        return f"{2 * int(count or 1)} {unit.removesuffix('s')}s"

    def start(layout: Any, training: Any) -> Any:
        every = {"step": "step", "episodes_done": "episode", **layout.every}
        return replace(layout, every={time: half(often) for time, often in every.items()})

    thinned = fit(settings, path, hooks=[_started(recorder, start)]).recorder(recorder.name)
    for name in moments:
        time = layout.arrays[name].time
        whole = dataset[name].sel({time: thinned[time].values})
        same = np.array_equal(whole.values, thinned[name].values, equal_nan=True)
        assert same, f"{name}: rows stand at another time than the one they are of"


def _started(recorder: Any, start: Callable[[Any, Any], Any]) -> Any:
    """A recorder like this one with another layout: what `start(layout, training)` returns."""
    base: Any = recorder if isinstance(recorder, type) else type(recorder)

    class Started(base):  # type: ignore[misc]
        def start(self, training: Any) -> Any:
            return start(super().start(training), training)

    if base is recorder:
        return Started
    like = copy.copy(recorder)
    like.__class__ = Started
    return like


def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="recovery_probe-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
