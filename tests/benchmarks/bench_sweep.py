"""What a sweep costs beyond its runs.

    python tests/benchmarks/bench_sweep.py [--points 1000] [--runs 12]

Planning: seconds for so many points, each with its control. Overhead: of a sweep of tiny runs in
one worker process, what a run takes from the one before it to its own end, less what it says it
trained for and what a plain `fit` in one process takes beside that. Memory: of that worker, by
runs.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil
import tyro

import recovery_probe as rp
from recovery_probe.sweep import processes, read, sweep
from recovery_probe.sweep import spec as specs

TINY = """
base = "quickstart"
seeds = {seeds}

[set]
epochs = 2
steps = 2
threads = 1
recorders = []
documents = {{ count = 4, tokens = 16, held_out = 1, min_tokens = 16 }}
model = {{ width = 32, depth = 1, heads = 2, vocabulary = 512 }}

[axes]
"optimizer.lr" = [0.1]
"""


def bench(points: int = 1000, runs: int = 12) -> None:
    """Measure and tell."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.toml"
        file.write_text(TINY.format(seeds=list(range(points))))
        start = time.perf_counter()
        jobs = specs.planned(read(file), Path(folder) / "planned")
        print(f"planning {len(jobs)} runs: {time.perf_counter() - start:.2f} s")

        file.write_text(TINY.format(seeds=list(range(runs))))
        memory: list[float] = []
        ends: list[float] = []

        class Watched(type(processes(1)())):  # type: ignore[misc]
            def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
                future = super().submit(fn, *args, **kwargs)
                future.add_done_callback(lambda _: look())
                return future

        def look() -> None:
            ends.append(time.perf_counter())
            children = psutil.Process(os.getpid()).children()
            memory.append(max(child.memory_info().rss for child in children) / 1e6)

        sweep(read(file), Path(folder) / "out", lambda: Watched(1, 1), estimate=False)
        made = [rp.open_run(p.parent) for p in (Path(folder) / "out").rglob("provenance.json")]
        trained = sum(run.provenance["seconds"] for run in made) / len(made)
        each = (ends[-1] - ends[1]) / (len(ends) - 2)

        settings = made[0].config
        rp.fit(settings, Path(folder) / "warm")
        start = time.perf_counter()
        rp.fit(settings, Path(folder) / "plain")
        plain = time.perf_counter() - start
        print(
            f"a run: {each:.2f} s in the sweep, {plain:.2f} s by fit, {trained:.2f} s of training"
        )
        half = len(memory) // 2
        print(
            f"memory of the worker: {memory[1]:.0f} MB after 2 runs, {memory[half]:.0f} after "
            f"{half + 1}, {memory[-1]:.0f} after {len(memory)}"
        )


if __name__ == "__main__":
    tyro.cli(bench)
