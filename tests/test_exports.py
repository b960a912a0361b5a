"""Runs in the formats and on the dashboards of others."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import tiny
from recovery_probe_analyses.age_curve import AgeCurve

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import analyze
from recovery_probe.train.plan import Point


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """With curves on both dashboards, and one analysis done."""
    out = tmp_path_factory.mktemp("exports")
    made = rp.fit(tiny(recorders=["tensorboard", "wandb"]), out, control="shuffled")
    analyze(made, made.controls, ["age_curve"])
    return made


def test_tables_hold_what_the_record_holds(run: rp.Run, tmp_path: Path) -> None:
    losses = run.to_pandas()
    assert {"episodes_done", "document", "epoch", "trained_on", "losses"} <= set(losses.columns)
    square = losses.pivot(index="episodes_done", columns="document", values="losses")
    np.testing.assert_array_equal(square.values, run.losses.values)
    schedule = run.to_pandas("schedule").schedule
    np.testing.assert_array_equal(schedule, run.schedule.values)
    np.testing.assert_array_equal(run.to_pandas("train_loss").train_loss, run.train_loss.values)
    for what in ("losses", "schedule", "train_loss", "age_curve"):
        file = run.to_parquet(tmp_path / "deep" / f"{what}.parquet", what)
        pd.testing.assert_frame_equal(pd.read_parquet(file), run.to_pandas(what))
    assert not list(tmp_path.rglob("*.partial"))


def test_tables_hold_what_an_analysis_found(run: rp.Run) -> None:
    table, found = run.to_pandas("age_curve"), AgeCurve()(run, *run.controls)
    own = table[(table.variable == "gain") & (table.control == "shuffled")].set_index("epoch").value
    np.testing.assert_allclose(own, found.gain.sel(control="shuffled").sel(epoch=own.index))
    numbers = [n for n, v in found.data_vars.items() if v.dtype.kind in "biuf"]
    assert set(table.variable) == set(numbers)
    assert len(table) == sum(found[name].size for name in numbers)


@pytest.mark.parametrize("what", ["losses", "train_loss", "schedule", "age_curve"])
def test_netcdf_is_read_back_by_xarray_alone(what: str, run: rp.Run, tmp_path: Path) -> None:
    file = run.to_netcdf(tmp_path / f"{what}.nc", what)
    with xr.open_dataset(file, engine="netcdf4") as back:
        if what == "age_curve":
            expected = AgeCurve()(run, *run.controls)
            assert set(expected.data_vars) == set(back.data_vars)
            np.testing.assert_allclose(back.gain, expected.gain)
            assert back.gain.attrs["units"] == expected.gain.attrs["units"]
        else:
            own = getattr(run, what)
            np.testing.assert_array_equal(back[what].values, own.values)
            assert back[what].dims == own.dims
            assert back[what].attrs.get("units") == own.attrs.get("units")


def test_what_is_not_there_is_said(
    run: rp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(rp.Missing, match="no 'age_curves'; did you mean 'age_curve'"):
        run.to_pandas("age_curves")
    find = importlib.util.find_spec
    for package, write in (("netCDF4", run.to_netcdf), ("pyarrow", run.to_parquet)):
        none = lambda name, *more, p=package: None if name == p else find(name, *more)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", none)
        with pytest.raises(
            rp.InputError, match=rf"{package} is not installed: pip install .*export"
        ):
            write(tmp_path / "file")
    for name in ("tensorboard", "wandb"):
        none = lambda name_, *more, p=name: None if name_ == p else find(name_, *more)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", none)
        with pytest.raises(rp.InputError, match=rf"needs the package {name}: pip install"):
            rp.fit(tiny(recorders=[name]), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def _events(run: rp.Run) -> dict[str, dict[int, float]]:
    """Scalar -> episodes done -> value, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {}
    for name in read.Tags()["scalars"]:
        events = read.Scalars(name)
        found[name] = {event.step: event.value for event in events}
        assert len(found[name]) == len(events), "no episode twice"
    return found


def _logged(run: rp.Run) -> dict[str, dict[int, float]]:
    """The same of Weights & Biases' offline file, by its own reader."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[int, float]] = {}
    for file in sorted((run.path / "wandb").glob("offline-run-*/*.wandb")):
        for data in _leveldb(file.read_bytes()[7:]):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                for name in [name for name in row if not name.startswith("_")]:
                    found.setdefault(name, {})[int(row["_step"])] = row[name]
    return found


def _leveldb(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 kB, the first of which has lost the 7
    bytes of a header; (checksum, length, type) before each part, of which type 1 is whole, 2
    begins, 4 ends."""
    place, whole = 7, b""
    data = b"0" * 7 + data
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.parametrize("read", [_events, _logged])
def test_dashboards_show_the_record(read: Any, run: rp.Run) -> None:
    found, losses, T = read(run), run.losses.values, run.config.documents.count
    expected = {
        "loss/trained": losses[:, :T].mean(axis=1),
        "loss/held_out": losses[:, T:].mean(axis=1),
    }
    expected |= {f"loss/document_{k:03d}": losses[:, k] for k in range(losses.shape[1])}
    for name, values in expected.items():
        assert list(found[name]) == list(range(len(losses)))
        np.testing.assert_allclose(list(found[name].values()), values, rtol=1e-6)
    arrival = losses[np.arange(run.schedule.size), run.schedule.values]
    np.testing.assert_allclose(list(found["loss/on_arrival"].values()), arrival, rtol=1e-6)
    so_far = stats.recovery_so_far(losses[:, :T], run.schedule.values)
    assert found["recovery"][run.schedule.size] == pytest.approx(so_far)


def test_a_run_that_goes_on_shows_no_episode_twice(tmp_path: Path) -> None:
    settings = tiny(recorders=["checkpoints", "tensorboard"], epochs=2)
    rp.fit(settings, tmp_path / "run")
    (tmp_path / "run" / "notes").mkdir()
    (tmp_path / "run" / "notes" / "mine.txt").write_text("of the user's")
    run = rp.fit(
        [Point(tmp_path / "run", tiny(recorders=["checkpoints", "tensorboard"], epochs=3))],
        resume=True,
    )
    found = _events(run)["loss/trained"]
    np.testing.assert_allclose(
        [found[k] for k in range(16)], run.losses.values[:, :5].mean(axis=1), rtol=1e-6
    )
    assert (run.path / "notes" / "mine.txt").read_text() == "of the user's"
