"""What single-threaded workers gain on one machine.

    python tests/benchmarks/bench_engines.py [--runs 4] [--cores 2]

The same sweep of runs of the quickstart's network three ways: here one by one, each with a thread
for every core; the same with one thread; in as many worker processes as there are cores, of one
thread each. Seconds, and ratios to the first. Wants a quiet machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import tyro

from recovery_probe.sweep import processes, read, sweep

SWEEP = """
base = "quickstart"
seeds = {seeds}

[set]
epochs = 2
threads = {threads}
recorders = []
documents = {{ count = 8, held_out = 1 }}

[axes]
"optimizer.lr" = [0.1]
"""


def bench(runs: int = 4, cores: int = os.cpu_count() or 1) -> None:
    """Measure and tell."""
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, threads, engine in (
            (f"one by one, {cores} threads", cores, None),
            ("one by one, 1 thread", 1, None),
            (f"{cores} workers of 1 thread", 1, processes(cores)),
        ):
            file = Path(folder) / f"{name}.toml"
            file.write_text(SWEEP.format(seeds=list(range(runs)), threads=threads))
            began = time.perf_counter()
            sweep(read(file), Path(folder) / name, engine, estimate=False)
            seconds = time.perf_counter() - began
            first = first or seconds
            print(f"{name}: {seconds:.0f} s for {runs} runs, {first / seconds:.2f} times as fast")


if __name__ == "__main__":
    tyro.cli(bench)
