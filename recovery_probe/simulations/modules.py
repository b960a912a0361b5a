"""The weights of a process that has no modules, in two halves that are called as a network's are:
analyses look for kinds of modules. Nothing but chance makes the halves differ."""

from __future__ import annotations

from typing import Literal

import numpy as np

from recovery_probe.record.layout import STEP, Array, module_coords
from recovery_probe.simulations import Recorded
from recovery_probe.stats import Floats

MODULES = ("blocks.0.attn.weight", "blocks.0.mlp.weight")


def of_updates(moved: Floats) -> Recorded:
    """`weight_deltas` of (episode, module, coordinate) updates."""
    return _by_episode(moved, "weight update applied", "weight", "stretch")


def of_gradients(gradients: Floats) -> Recorded:
    """`gradients` of (episode, module, coordinate): that of the first step of each episode."""
    return _by_episode(gradients, "gradient of the training loss", "nats", "moment")


def _by_episode(
    values: Floats, what: str, units: str, covers: Literal["moment", "stretch"]
) -> Recorded:
    norm = np.linalg.norm(values, axis=-1)
    exact = f"exact coordinates of the {what}, in an orthonormal basis"
    dims, short = ("module", "sketch"), f"exact norm of the {what}"
    sketched = Array(STEP, dims, values.shape[1:], exact, units, "float64", covers)
    norms = Array(STEP, dims[:1], norm.shape[1:], short, units, "float64", covers)
    return Recorded(
        {"sketched": (sketched, values), "norm": (norms, norm)},
        module_coords(MODULES),
        {"every": "episode"},
    )
