"""What the tests share: tiny settings, and one tiny trained pair of runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the hub

import recovery_probe as rp

torch.set_num_threads(1)  # the models are tiny, and pytest-xdist runs several tests at once

TINY = {
    "epochs": 3,
    "steps": 3,
    "documents": {"count": 5, "tokens": 24, "held_out": 2, "min_tokens": 24},
    "model": {"depth": 2, "width": 32, "heads": 2, "vocabulary": 512},
}


def tiny(**changes: object) -> rp.Settings:
    """The quickstart at a size that trains in a second, with changes."""
    merged = {
        key: {**TINY.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in {**TINY, "control": "none", **changes}.items()
    }
    return rp.preset("quickstart", **merged)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A trained tiny cyclic run; `pair.controls` holds its shuffled control. Do not write to it."""
    out: Path = tmp_path_factory.mktemp("pair")
    return rp.fit(tiny(control="shuffled"), out)
