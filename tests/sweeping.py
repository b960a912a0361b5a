"""A tiny sweep, which the tests of sweeps share."""

from __future__ import annotations

from pathlib import Path

from kills import differences

import recovery_probe as rp

TINY = """# Two depths
base = "quickstart"
control = ["shuffled"]
seeds = [0]

[set]
epochs = 3
steps = 3
threads = 1
recorders = ["checkpoints"]
documents = { count = 5, tokens = 24, held_out = 2, min_tokens = 24 }
model = { width = 32, heads = 2, vocabulary = 512 }

[axes]
"model.depth" = [1, 2]

[[paper]]
axis = "model.depth"
source = "nowhere"
direction = "up"
at = [4, 8]
values = [0.1, 0.2]
"""
SIX = TINY.replace("[1, 2]", "[1, 2, 3]", 1)  # runs
ONE = TINY.replace("[1, 2]", "[1]", 1).replace('["shuffled"]', "[]")


def runs(out: Path) -> list[rp.Run]:
    """Every run of a sweep; and nothing else is left there."""
    assert not list(out.rglob(".*-*"))
    return [rp.open_run(p.parent) for p in sorted(out.rglob("provenance.json"))]


def check_same(out: Path, whole: Path) -> None:
    """Raise unless all runs of a sweep have the records of another's, bit for bit: `SIX`, or
    `ONE`."""
    made = runs(out)
    assert len(made) in (1, 6)
    for run in made:
        assert run.status == "complete"
        place = run.path.relative_to(out)
        other = whole / place / ("cyclic" if len(made) == 1 else "")
        assert differences(run, rp.open_run(other)) == []
