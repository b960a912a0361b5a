"""Runs of every format that there has been are read for ever."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import recovery_probe as rp
from recovery_probe import config
from recovery_probe.analyze import analyze
from recovery_probe.record.verify import verify

# `stored/format-1.tar.xz` holds a cyclic run and its shuffled control as version 0.1.0 wrote them,
# of `toy_settings(epochs=2, steps=2, sketch=8)` with one block of width 8 and one head, 257 tokens
# and 3 + 1 documents of 8 tokens, with every default recorder and two checkpoints; the host's name
# and kernel were taken out of the provenance, and the checksums of texts written again. (A zip is
# three times as large: a run has hundreds of small files.) `format-1.json` holds numbers read from
# it with zarr that day. Neither must ever be made again: what is read here is what users' disks
# hold.
STORED = Path(__file__).parent / "stored"
EXPECTED = json.loads((STORED / "format-1.json").read_text("utf-8"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    shutil.unpack_archive(STORED / "format-1.tar.xz", tmp_path, filter="data")
    return tmp_path


def check_numbers(run: rp.Run, expected: dict[str, Any]) -> None:
    """What a run reads as is what was in its arrays, bit for bit."""
    assert run.losses.values.tolist() == expected["losses"]
    assert run.train_loss.values.tolist() == expected["train_loss"]
    assert run.schedule.values.tolist() == expected["document_of_episode"]
    assert {name.partition("/")[0] for name in expected["arrays"]} == set(run.recorders)
    for name, told in expected["arrays"].items():
        recorder, _, array = name.partition("/")
        values = run.recorder(recorder)[array].values.astype("<f8")
        assert list(values.shape) == told["shape"], name
        assert np.nansum(values) == pytest.approx(told["sum"]), name
        assert hashlib.sha256(values.tobytes()).hexdigest() == told["sha256"], name


def test_format_1_is_read(stored: Path) -> None:
    run = rp.open_run(stored / "cyclic")
    assert zarr.open_group(run.path / "record.zarr", mode="r").attrs["format"] == 1
    assert run.status == "complete"
    assert (run.config.documents.count, run.config.epochs, run.config.steps) == (3, 2, 2)
    assert (run.config.schedule.kind, run.config.optimizer.lr) == ("cyclic", 0.1)
    assert run.declared
    assert run.checkpoints == [0, 6]
    check_numbers(run, EXPECTED["cyclic"])
    (control,) = run.controls
    assert control.config.schedule.kind == "shuffled"
    check_numbers(control, EXPECTED["shuffled"])
    for each in (run, control):
        each.check()
        assert verify(each.path) == []


def test_format_1_goes_on(stored: Path) -> None:
    """Its settings have others beside them now, and `reset` is no bool any more."""
    run = rp.open_run(stored / "cyclic")
    assert "reset = false" in (run.path / "config.toml").read_text()
    assert run.config.optimizer.reset == "never"
    assert config.check(run.config) == run.config
    longer = rp.fit(rp.changed(run.config, epochs=3), run.path, resume=True)
    assert (longer.status, longer.episodes_done) == ("complete", 9)
    assert longer.losses[:7].values.tolist() == EXPECTED["cyclic"]["losses"]


def test_format_1_is_analysed(stored: Path) -> None:
    run = rp.open_run(stored / "cyclic")
    summary = analyze(run, run.controls, ["recovery", "online_loss"])
    assert {"recovery", "online_loss"} <= set(summary["analyses"])
    assert not summary.get("not_done")
    assert (stored / "cyclic" / "report.html").is_file()


@pytest.mark.parametrize("episodes_done", [0, 6])
def test_format_1_has_its_models(episodes_done: int, stored: Path) -> None:
    run = rp.open_run(stored / "cyclic")
    model = run.model_at(episodes_done)
    inputs = {name: torch.tensor(run.record[name].values) for name in run.record.attrs["inputs"]}
    with torch.no_grad():
        losses = model.losses(inputs)
    assert losses.numpy() == pytest.approx(EXPECTED["cyclic"]["losses"][episodes_done], abs=1e-5)


def test_a_later_format_is_refused_by_name(stored: Path) -> None:
    record = zarr.open_group(stored / "cyclic" / "record.zarr", mode="r+")
    record.attrs["format"] = 99
    with pytest.raises(rp.InputError, match="is of format 99, and this version reads up to 1"):
        rp.open_run(stored / "cyclic")


def test_settings_that_have_come_since_are_as_they_were(stored: Path) -> None:
    """The same settings, read today, are the same run."""
    path = stored / "cyclic"
    today = config.load(path / "config.toml")
    assert (today.optimizer.reset, today.optimizer.decay, today.optimizer.nesterov) == (
        *("never", "none"),
        False,
    )
    assert rp.fit(today, path, resume=True).status == "complete"
    longer = rp.changed(today, epochs=3)
    assert rp.fit(longer, path, resume=True).episodes_done == 9
