"""All default analyses of a long run: time and memory, on one thread.

    python tests/benchmarks/bench_analyses.py RUN

RUN is analysed anew, into a folder that goes; its own files stay as they are. The aim is a minute
and a gigabyte for T = 100, E = 20, M = 2, H = 5 with the default recorders, such as (texts.txt has
a text on each of 110 lines)

    python -m recovery_probe.train quickstart --control none --out RUN \\
        --documents.source texts.txt --documents.count 100 --documents.held_out 5 \\
        --documents.tokens 32 --documents.min_tokens 32 --epochs 20 --steps 2 \\
        --model.width 32 --model.depth 2 --model.heads 2 --model.vocabulary 512
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import resource
import sys
import tempfile
import time

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.analyze import analyze
from recovery_probe.analyze.perform import instance
from recovery_probe.errors import Missing


def peak() -> float:
    """Of this process so far, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    run = rp.open_run(sys.argv[1])
    print(f"{'analysis':<24}{'CPU s':>8}{'peak GB':>9}")
    for name in sorted(plugins.installed("analyses")):
        analysis = instance(name)
        if not analysis.needs:
            continue
        began = time.process_time()
        try:
            analysis(run)
        except Missing:
            continue
        print(f"{name:<24}{time.process_time() - began:8.1f}{peak():9.2f}")
    with tempfile.TemporaryDirectory() as folder:
        wall, began = time.monotonic(), time.process_time()
        analyze(run, out=folder)
        print(
            f"{'all, with the report':<24}{time.process_time() - began:8.1f}{peak():9.2f}, "
            f"{time.monotonic() - wall:.1f} s by the clock"
        )
