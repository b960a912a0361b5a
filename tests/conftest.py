"""What the tests share: tiny settings, and one tiny trained pair of runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the hub

import recovery_probe as rp
from recovery_probe.testing import toy_settings as tiny

torch.set_num_threads(1)  # the models are tiny, and pytest-xdist runs several tests at once


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A trained tiny cyclic run; `pair.controls` holds its shuffled control. Do not write to it."""
    out: Path = tmp_path_factory.mktemp("pair")
    return rp.fit(tiny(control="shuffled"), out)
