"""pairwise_recovery where test_replay.py does not look: Adam, the caller's generator, messages."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from recovery_probe_analyses import pairwise_recovery
from recovery_probe_analyses.pairwise_recovery import PairwiseRecovery

import recovery_probe as rp
from recovery_probe.errors import Missing


def test_adam_starts_afresh_on_every_document(tmp_path: Path) -> None:
    """Against naive copies of the model, each with an optimizer of its own."""
    settings = tiny(
        recorders=["checkpoints"],
        model={"dtype": "float64"},
        optimizer={"name": "adam", "lr": 1e-3},
    )
    run = rp.fit(settings, tmp_path / "run")
    found = pairwise_recovery.drops(run, 15)
    tokens = torch.tensor(run.record.tokens.values)

    def loss(model: object, j: int) -> torch.Tensor:
        logits = model.bridge(tokens[j][None], use_cache=False)[0]  # type: ignore[attr-defined]
        return F.cross_entropy(logits[:-1], tokens[j][1:])

    for i in (0, 4):
        model = run.model_at(15)
        before = [loss(model, j).item() for j in range(len(tokens))]
        optimizer = torch.optim.Adam(model.parameters.values(), lr=1e-3, fused=False)
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, i).backward()
            optimizer.step()
        expected = np.array(before) - [loss(model, j).item() for j in range(len(tokens))]
        np.testing.assert_allclose(found[i], expected, atol=1e-8)


def test_the_callers_generator_is_put_back(pair: rp.Run) -> None:
    before = torch.get_rng_state()
    first = pairwise_recovery.drops(pair, 15)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(pairwise_recovery.drops(pair, 15), first)


def test_what_is_missing_is_named(pair: rp.Run, tmp_path: Path) -> None:
    def again(run: rp.Run, **settings: object) -> object:
        return PairwiseRecovery(from_checkpoint=True, **settings)(run)  # type: ignore[arg-type]

    with pytest.raises(Missing, match=r"runs the model again.*pass --from-checkpoint"):
        PairwiseRecovery()(pair)
    with pytest.raises(Missing, match="no checkpoint after 7 episodes"):
        again(pair, episodes=(7,))
    shutil.copytree(pair.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(Missing, match="no checkpoints; train again"):
        again(rp.open_run(tmp_path / "run"))
