"""What checkpoints and checksums take of a run, as shares of its own time.

    python tests/benchmarks/bench_checkpoints.py [--epochs 2] [--optimizer adam]

Two shares of one run of the quickstart: of writing its checkpoints (weights, state, checksums,
flushed to the disk, at the start and after every epoch), as the run itself measured it; and of the
checksums alone, taken again.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import tyro

import recovery_probe as rp
from recovery_probe.record import checkpoint, checksums
from recovery_probe.record.folder import checkpoint_folder


def bench(epochs: int = 2, optimizer: str = "sgd") -> None:
    """Train once and tell."""
    chosen = {"name": optimizer} | ({} if optimizer == "sgd" else {"lr": 1e-4})
    with tempfile.TemporaryDirectory() as folder:
        settings = rp.preset("quickstart", epochs=epochs, threads=1, optimizer=chosen)
        run = rp.fit(settings, Path(folder) / "run")
        seconds = run.provenance["seconds"]
        start = time.perf_counter()
        for done in run.checkpoints:
            checkpoint.damage(checkpoint_folder(run.path, done))
        checksums.write(run.path)
        summing = time.perf_counter() - start
        print(f"{optimizer}, {epochs} epochs, {len(run.checkpoints)} checkpoints, {seconds:.0f} s")
        print(f"checkpoints {run.provenance['recorders']['checkpoints']['share']:.2%}")
        print(f"checksums   {summing / seconds:.2%}")


if __name__ == "__main__":
    tyro.cli(bench)
