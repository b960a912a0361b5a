"""What the tests share: tiny settings, and one tiny trained pair of runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the hub
# Tests run side by side, and start processes and notebooks: several of them with a thread for
# every core each would wait for one another. The models are tiny.
os.environ["OMP_NUM_THREADS"] = "1"

import recovery_probe as rp
from recovery_probe.testing import toy_settings as tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A trained tiny cyclic run; `pair.controls` holds its shuffled control. Do not write to it."""
    out: Path = tmp_path_factory.mktemp("pair")
    return rp.fit(tiny(control="shuffled"), out)


def planted(run: rp.Run, path: Path, losses: np.ndarray) -> rp.Run:
    """A copy of a run with other losses in it."""
    shutil.copytree(run.path, path)
    zarr.open_group(path / "record.zarr", mode="r+")["losses"][:] = losses
    return rp.open_run(path)


def cut(run: rp.Run, path: Path, episodes: int) -> rp.Run:
    """A copy of a run as if it had been stopped after so many episodes."""
    shutil.copytree(run.path, path)
    zarr.open_group(path / "record.zarr", mode="r+")["rows_committed"][...] = episodes + 1
    return rp.open_run(path)
