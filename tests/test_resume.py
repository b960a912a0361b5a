"""A run that is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from kills import VARIANTS, differences, killed_and_resumed, kills, undisturbed

import recovery_probe as rp
from recovery_probe.testing import toy_settings as tiny

SEED = 11


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_moments(variant: str, tmp_path: Path) -> None:
    """And killed again while it goes on."""
    whole = undisturbed(variant, tmp_path / "whole")
    moments = kills(random.Random(f"{SEED} {variant}"), whole)
    said = killed_and_resumed(variant, tmp_path / "run", whole, next(moments), next(moments))
    assert not said, f"seed {SEED}: {said}"


@pytest.mark.parametrize("kind", ["cyclic", "shuffled"])
def test_more_epochs_go_on_from_the_end(kind: str, tmp_path: Path) -> None:
    """As if they had been asked for from the start; what was recorded by the stretch too, where the
    end was inside one."""
    changes = {
        "schedule": {"kind": kind},
        "optimizer": {"name": "adam"},
        "weight_deltas": {"every": "4 episodes"},
        "recorders": ["weight_deltas", "token_losses", "residual_stream", "checkpoints"],
    }
    whole = rp.fit(tiny(epochs=3, **changes), tmp_path / "whole")
    run = rp.fit(tiny(epochs=2, **changes), tmp_path / "run").replay(record=["gradients"])
    gradients = run.gradients.load()
    longer = rp.fit(tiny(epochs=3, **changes), run.path, resume=True)
    assert {name for name in differences(longer, whole) if "gradients" not in name} == set()
    assert longer.config == whole.config
    assert longer.provenance["lengthened"][0]["epochs"] == [2, 3]
    assert longer.provenance["resumed"][0]["after"] == 10
    assert longer.gradients.equals(gradients)
    longer.check()
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []
