"""A run directory, opened with this package and without it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import recovery_probe as rp


def test_record_opens_with_plain_xarray(pair: rp.Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = xr.open_zarr(pair.path / "record.zarr")
    T, H, E, M = 5, 2, 3, 3
    assert dict(record.losses.sizes) == {"episodes_done": E * T + 1, "document": T + H}
    assert dict(record.train_loss.sizes) == {"step": E * T * M}
    assert dict(record.document_of_episode.sizes) == {"episode": E * T}
    assert dict(record.tokens.sizes) == {"document": T + H, "position": 24}
    assert record.held_out.values.tolist() == [False] * T + [True] * H
    assert int(record.rows_committed) == E * T + 1
    assert record.losses.attrs["units"] == "nats"
    for name in ("losses", "train_loss", "document_of_episode", "tokens", "length"):
        assert record[name].attrs["description"]
        assert record[name].attrs["units"]
    assert np.isfinite(record.losses).all()


def test_open_run(pair: rp.Run) -> None:
    run = rp.open_run(str(pair.path))
    assert run.status == "complete"
    assert run.episodes_done == 15
    assert run.losses.dims == ("episodes_done", "document")
    assert run.losses.sel(document=0).sizes == {"episodes_done": 16}
    assert run.train_loss.dims == ("step",)
    assert run.schedule.dims == ("episode",)
    assert run.config.documents.count == 5
    assert {"torch", "transformer-lens", "numpy"} <= set(run.provenance["versions"])
    assert run.provenance["seconds"] > 0
    assert [c.config.schedule.kind for c in run.controls] == ["shuffled"]
    assert run.controls[0].controls == []


def test_rows_beyond_the_commit_do_not_count(pair: rp.Run, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(pair.path, copy)
    zarr.open_group(copy / "record.zarr", mode="r+")["rows_committed"][...] = 7
    run = rp.open_run(copy)
    assert run.episodes_done == 6
    assert np.isfinite(run.losses.values[:7]).all()
    assert np.isnan(run.losses.values[7:]).all()
    assert np.isfinite(run.train_loss.values[:18]).all()
    assert np.isnan(run.train_loss.values[18:]).all()


def test_shows_itself(pair: rp.Run) -> None:
    table = pair._repr_html_()
    for word in ("gpt_neox, 2 blocks", "15 of 15 episodes", "recovery so far", "cyclic, 3 epochs"):
        assert word in table
        assert word in repr(pair)


def test_opening_needs_no_torch_and_little_time(pair: rp.Run) -> None:
    code = f"""
import sys, time
start = time.perf_counter()
import recovery_probe
run = recovery_probe.open_run({str(pair.path)!r})
run.losses, run.schedule, run.controls
seconds = time.perf_counter() - start
heavy = {{"torch", "transformers", "transformer_lens", "matplotlib", "scipy"}} & set(sys.modules)
print(heavy or "light", seconds)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert {r.stdout.split()[0] for r in runs} == {"light"}
    # The bound is one second; the least of three, since other tests share the cores.
    assert min(float(r.stdout.split()[1]) for r in runs) < 2


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match="no such run directory"):
        rp.open_run(tmp_path / "nowhere")
    with pytest.raises(rp.InputError, match=r"not a run; it has no config\.toml"):
        rp.open_run(tmp_path)
