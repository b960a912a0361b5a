"""The paper's two interventions as its code has them: what is frozen, to the bit; how much is
masked, and how independently."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from intervened import ADAMW, MOMENTUM

import recovery_probe as rp
from recovery_probe import Mask
from recovery_probe.interventions.acting import Interventions

BLOCKS = 3
# As transformers calls them: the embeddings and the first B blocks, or the last B.
FROZEN = {
    "first": ("gpt_neox.embed_in.", "gpt_neox.layers.0.", "gpt_neox.layers.1."),
    "last": ("gpt_neox.layers.1.", "gpt_neox.layers.2."),
}


@pytest.mark.parametrize(
    "optimizer",
    [
        {**MOMENTUM, "nesterov": True, "reset": "epoch", "decay": "cosine"},
        {**MOMENTUM, "per": "episode"},
        ADAMW,
        {**ADAMW, "name": "adam", "amsgrad": True, "reset": "episode"},
    ],
    ids=str,
)
@pytest.mark.parametrize("which", ["first", "last"])
def test_what_is_frozen_is_the_same_to_the_bit(
    which: str, optimizer: dict[str, Any], tmp_path: Path
) -> None:
    freeze = {"embeddings": which == "first", which: 2}
    settings = tiny(
        epochs=2,
        recorders=["checkpoints"],
        interventions=["freeze"],
        freeze=freeze,
        model={"depth": BLOCKS},
        optimizer=optimizer,
    )
    run = rp.fit(settings, tmp_path / "run")
    start, end = run.weights_at(0), run.weights_at(10)
    for name, weight in start.items():
        moved = not np.array_equal(weight.view(np.int32), end[name].view(np.int32))
        assert moved != name.startswith(FROZEN[which]), name


STEPS, C, P = 400, 24, 0.3


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """(seed, step, C): where two runs are shown 0, in 400 steps."""
    shown = []
    for seed in (0, 1):
        settings = tiny(steps=STEPS, seed=seed, interventions=["mask"], mask={"p": P})
        training = rp.Training.open(settings)
        acts = Interventions([Mask(p=P)], training)
        steps = list(training.steps(0))
        ids = torch.cat([acts.shown(step)["tokens"] for step in steps]).numpy()
        document = training.inputs["tokens"][0].numpy()
        assert document.min() > 0
        assert (training.inputs["tokens"][0].numpy() == steps[-1].inputs["tokens"].numpy()).all()
        assert ((ids == 0) | (ids == document)).all()
        shown.append(ids == 0)
    return np.array(shown)


def test_as_many_ids_are_masked_as_was_asked_for(masks: np.ndarray) -> None:
    """In all, at each position and at each step: within 4.5 standard errors of a binomial."""
    for axes, count in (((0, 1, 2), 2 * STEPS * C), ((0, 1), 2 * STEPS), ((0, 2), 2 * C)):
        share = masks.mean(axis=axes)
        assert np.abs(share - P).max() < 4.5 * math.sqrt(P * (1 - P) / count)


def test_masks_are_independent_of_one_another(masks: np.ndarray) -> None:
    """Between steps, positions and seeds: correlations are within ±4.5 / √n."""
    a = (masks - P) / math.sqrt(P * (1 - P))
    pairs = {
        **{f"{lag} steps on": (a[:, :-lag], a[:, lag:]) for lag in (1, 2, 3, 10)},
        "the next position": (a[..., :-1], a[..., 1:]),
        "the other seed": (a[0], a[1]),
    }
    for between, (x, y) in pairs.items():
        assert abs((x * y).mean()) < 4.5 / math.sqrt(x.size), between
    rows = masks.reshape(-1, C)
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_labels_and_evaluations_are_not_masked(tmp_path: Path) -> None:
    """With all ids masked a network is shown nothing, and learns how often ids come: the loss of a
    document is that of its own ids."""
    settings = tiny(epochs=1, recorders=["checkpoints"], interventions=["mask"], mask={"p": 1.0})
    run = rp.fit(settings, tmp_path / "run")
    model, inputs = run.model_at(0), rp.Training.at(run, 0).inputs
    with torch.no_grad():
        logits = model.logits({**inputs, "tokens": torch.zeros_like(inputs["tokens"])})
        hidden = torch.nn.functional.cross_entropy(logits[0, :-1], inputs["tokens"][0, 1:]).item()
        seen = model.losses(inputs).numpy()
    assert run.train_loss.values[0] == pytest.approx(hidden, abs=1e-5)
    np.testing.assert_allclose(run.losses.values[0], seen, atol=1e-6)
    assert abs(hidden - seen[0]) > 1e-3
