"""A run directory, opened with this package and without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from conftest import cut, tiny, training

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.record import store


def test_record_opens_with_plain_xarray(pair: rp.Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = xr.open_zarr(pair.path / "record.zarr", group="training")
        tree = xr.open_datatree(pair.path / "record.zarr", engine="zarr")
    assert set(tree.children) == {"training", *pair.recorders}
    assert tree.attrs["seed"] == "0"
    assert (tree.attrs["lr"], tree.attrs["steps_per_episode"]) == (0.1, 3)
    assert tree.attrs["recovery_probe"]
    for node in tree.subtree:
        for name, coordinate in node.coords.items():
            assert coordinate.attrs.get("description"), f"{node.path}: {name}"
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
    run = cut(pair, tmp_path / "copy", 6)
    assert run.episodes_done == 6
    assert run.status == "killed"
    assert np.isfinite(run.losses.values[:7]).all()
    assert np.isnan(run.losses.values[7:]).all()
    assert np.isfinite(run.train_loss.values[:18]).all()
    assert np.isnan(run.train_loss.values[18:]).all()


def test_shows_itself(pair: rp.Run) -> None:
    table = pair._repr_html_()
    for word in ("gpt_neox, 2 blocks", "15 of 15 episodes", "recovery so far", "cyclic, 3 epochs"):
        assert word in table
        assert word in repr(pair)


def test_opening_needs_nothing_heavy(pair: rp.Run) -> None:
    code = f"""
import sys
import recovery_probe
run = recovery_probe.open_run({str(pair.path)!r})
run.losses, run.schedule, run.controls
print({{"torch", "transformers", "transformer_lens", "matplotlib", "scipy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match="no such run directory"):
        rp.open_run(tmp_path / "nowhere")
    with pytest.raises(rp.InputError, match=r"not a run; it has no config\.toml"):
        rp.open_run(tmp_path)


def copied(run: rp.Run, tmp_path: Path) -> Path:
    shutil.copytree(run.path, tmp_path / "copy")
    return tmp_path / "copy"


def flip(file: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "losses gone": lambda r: shutil.rmtree(r / "record.zarr/training/losses/c"),
    "losses and their name gone": lambda r: shutil.rmtree(r / "record.zarr/training/losses"),
    "one chunk of the losses gone": lambda r: (r / "record.zarr/training/losses/c/1/0").unlink(),
    "a byte of the losses": lambda r: flip(r / "record.zarr/training/losses/c/0/0"),
    "a byte of the schedule": lambda r: flip(r / "record.zarr/training/document_of_episode/c/0"),
    "a byte of gradients": lambda r: flip(r / "record.zarr/gradients/sketched/c/0/0/0"),
    "a chunk of updates": lambda r: (r / "record.zarr/weight_deltas/sketched/c/0/0/0").unlink(),
    "count of rows gone": lambda r: (r / "record.zarr/training/rows_committed/c").unlink(),
    "too many rows": lambda r: training(r)["rows_committed"].__setitem__(..., 10**6),
    "too few rows": lambda r: training(r)["rows_committed"].__setitem__(..., -5),
    "losses that are no numbers": lambda r: training(r)["losses"].__setitem__((3, 2), np.nan),
    "metadata cut off": lambda r: halve(r / "record.zarr/zarr.json"),
    "metadata of an array cut off": lambda r: halve(r / "record.zarr/training/losses/zarr.json"),
    "provenance cut off": lambda r: halve(r / "provenance.json"),
    "settings emptied": lambda r: (r / "config.toml").write_text(""),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_run_is_called_so_by_name(
    what: str, pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a verdict: one line, exit code 2, and nothing written."""
    path = copied(pair, tmp_path)
    DAMAGE[what](path)
    with pytest.raises(SystemExit) as stop:
        main(["analyze", str(path), "--analysis", "recovery", "--analysis", "weight_residuals"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1
    assert "damaged" in said
    assert str(path) in said
    assert "bring back a copy" in said
    assert not (path / "analyses").exists()
    with pytest.raises(rp.Damaged):
        rp.open_run(path).check()


def test_a_damaged_run_can_be_replaced(pair: rp.Run, tmp_path: Path) -> None:
    path = copied(pair, tmp_path)
    DAMAGE["provenance cut off"](path)
    assert rp.fit(tiny(epochs=1), path, overwrite=True).status == "complete"


def test_an_undamaged_run_is_not(pair: rp.Run, tmp_path: Path) -> None:
    pair.check()
    cut(pair, tmp_path / "cut", 6).check()


def test_damaged_weights_are_named(pair: rp.Run, tmp_path: Path) -> None:
    path = copied(pair, tmp_path)
    halve(path / "checkpoints" / "episodes-00005" / "model.safetensors")
    (path / "checkpoints" / "episodes-abc").mkdir()
    run = rp.open_run(path)
    assert run.checkpoints == [0, 5, 10, 15]
    with pytest.raises(rp.Damaged, match=r"episodes-00005: damaged: model\.safetensors is"):
        run.weights_at(5)


def test_rows_that_come_while_a_reader_looks_do_not_count(pair: rp.Run, tmp_path: Path) -> None:
    run = cut(pair, tmp_path / "cut", 6)
    path = run.path
    training(path)["rows_committed"][...] = 16
    assert run.episodes_done == 6
    assert np.isnan(run.losses.values[7:]).all()
    assert rp.open_run(path).episodes_done == 15


def test_places_have_names(pair: rp.Run) -> None:
    run, T, M = pair.controls[0], 5, 3
    order = run.schedule.values.tolist()
    for array in (run.train_loss, run.gradients.norm):
        labels = [(order[s // M], s // M, s // M // T + 1, s % M) for s in range(45)]
        found = [array[n].values.tolist() for n in ("document", "episode", "epoch", "within")]
        assert list(zip(*found, strict=True)) == labels
    losses = run.losses
    assert losses.trained_on.values.tolist() == [-1, *order]
    assert losses.episode.values.tolist() == list(range(-1, 15))
    assert losses.epoch.values.tolist() == [0, *[1] * 5, *[2] * 5, *[3] * 5]
    assert losses.within.values.tolist() == [-1, *[0, 1, 2, 3, 4] * 3]
    assert run.train_loss.groupby("document").mean().sizes == {"document": 5}
    third = run.train_loss.where(run.train_loss.document == 3, drop=True)
    assert third.sizes == {"step": 9}
    # Two runs' steps are the same steps, whichever documents they train on.
    assert (run.train_loss - pair.train_loss).sizes == {"step": 45}


def test_modules_are_chosen_by_name(pair: rp.Run) -> None:
    gradients = pair.gradients.load()
    names = gradients["name"].values.tolist()
    one = gradients.sel(kind="mlp.out", block=1)
    assert one["name"].values.tolist() == ["blocks.1.mlp.out"]
    at = names.index("blocks.1.mlp.out")
    assert np.array_equal(one.norm.values[:, 0], gradients.norm.values[:, at])
    both = gradients.sel(kind=["attn.q", "attn.k"])
    assert set(both["kind"].values) == {"attn.q", "attn.k"}
    assert both.sizes["module"] == 4
    assert (
        gradients.isel(step=0).sel(block=0).sizes
        == gradients.isel(step=0, module=slice(0, 8)).sizes
    )
    assert gradients.isel(module=[3, 1]).sel(name=names[3]).norm.shape == (45, 1)
    assert gradients.isel(module=3)["name"].item() == names[3]
    with pytest.raises(KeyError, match=r"mlp\.ou"):
        gradients.sel(kind="mlp.ou")


def test_arrays_can_be_saved_as_they_come(pair: rp.Run, tmp_path: Path) -> None:
    for name, dataset in {n: pair.recorder(n) for n in pair.recorders}.items():
        dataset.to_zarr(tmp_path / f"{name}.zarr", zarr_format=3, consolidated=False)
        dataset.to_netcdf(tmp_path / f"{name}.nc", engine="scipy")
        back = xr.open_dataset(tmp_path / f"{name}.nc", engine="scipy").load()
        assert set(back.variables) == set(dataset.variables)
        for n, variable in dataset.load().data_vars.items():
            np.testing.assert_array_equal(back[n], variable, err_msg=n)
    pair.losses.to_netcdf(tmp_path / "losses.nc", engine="scipy")
    pair.weight_trajectory().to_netcdf(tmp_path / "trajectory.nc", engine="scipy")
    pair.losses.to_zarr(tmp_path / "losses.zarr", zarr_format=3, consolidated=False)


def test_a_run_tells_what_it_has(pair: rp.Run, tmp_path: Path) -> None:
    assert hasattr(pair, "gradients")
    assert not hasattr(pair, "attention_patterns")
    assert not hasattr(pair, "sketch")
    assert set(pair.recorders) <= set(dir(pair))
    assert {"fit", "Recorder", "open_run"} <= set(dir(rp))
    assert "Any" not in dir(rp)

    def mean(tensor: object, *, hook: object) -> float:
        return float(tensor.detach().mean())  # type: ignore[attr-defined]

    run = rp.fit(
        tiny(epochs=1, recorders=[]), tmp_path / "run", hooks=[("blocks.0.hook_out", mean)]
    )
    assert run.mean.value.sizes["step"] == 15
    assert run.checkpoints == []


def test_formats_of_the_record(
    pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This version's is read; a newer one, and none, are refused, by name and with the mend."""
    assert xr.open_datatree(pair.path / "record.zarr", engine="zarr").attrs["format"] == 1
    path = copied(pair, tmp_path)
    for found, said in (
        (2, f"{path}: its record is of format 2, and this version reads up to 1: install a newer"),
        ("draft", "is of format draft, and this version reads up to 1"),
        (None, f"{path}: its record says no format: .* train again"),
    ):
        root = zarr.open_group(path / "record.zarr", mode="r+", use_consolidated=False)
        if found is None:
            del root.attrs["format"]
            config = path / "config.toml"  # with a setting that there was then
            config.write_text('control = "shuffled"\n' + config.read_text())
        else:
            root.attrs["format"] = found
        store.consolidate(path / "record.zarr")
        with pytest.raises(rp.InputError, match=said) as error:
            rp.open_run(path)
        assert not isinstance(error.value, rp.Damaged)
        with pytest.raises(SystemExit) as stop:
            main(["analyze", str(path), "--analysis", "recovery"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: {error.value}\n"
        assert not (path / "analyses").exists()
