"""Inner products of all documents' gradients: ours against keeping T gradients.

    python tests/benchmarks/bench_gradient_gram.py [--documents 25] [--tokens 64] [--width 256] \
        [--vocabulary 4096]

Each way runs in a process of its own, so that its peak memory is its own; time is the median of
three calls after one that warms up. The plain way is T backward passes and one matrix product.
glibc is told to give freed memory back at once (`ALLOCATOR`), for both ways: otherwise the peak
shows what its heap has kept, and not what was in use.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

import recovery_probe as rp
from recovery_probe.gradient_products import GradientProducts

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def opened(options: argparse.Namespace) -> rp.Training:
    settings = rp.preset(
        "quickstart",
        documents={
            "count": options.documents,
            "held_out": 0,
            "tokens": options.tokens,
            "min_tokens": options.tokens,
        },
        model={
            "width": options.width,
            "depth": options.depth,
            "vocabulary": options.vocabulary,
        },
    )
    return rp.Training.open(settings)


def plain(training: rp.Training) -> torch.Tensor:
    """T gradients, kept, and their products."""
    parameters = list(training.model.parameters.values())
    training.model.train(False)
    kept = torch.empty(len(training.documents), sum(p.numel() for p in parameters))
    for i, row in enumerate(kept):
        training.losses(slice(i, i + 1))[0].backward()
        torch.cat([p.grad.flatten() for p in parameters], out=row)
        for p in parameters:
            p.grad = None
    return kept @ kept.T


def measure(options: argparse.Namespace) -> None:
    """Time and memory of one way, printed as JSON."""
    training = opened(options)
    ours = GradientProducts(training)

    def products() -> torch.Tensor:
        return ours().sum(0) if options.way == "ours" else plain(training)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        gram = products()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    median = statistics.median(seconds[1:])
    print(json.dumps({"seconds": median, "mb": peak / 1024, "gram": gram.tolist()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--way", choices=["ours", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options)
        sys.exit()
    ways = {}
    for way in ("ours", "plain"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **ALLOCATOR}
        )
        ways[way] = json.loads(done.stdout)
        print(f"{way:<6}{ways[way]['seconds']:8.3f} s, {ways[way]['mb']:8.1f} MB more at peak")
    a, b = (np.array(ways[way]["gram"]) for way in ("ours", "plain"))
    difference = np.abs(a - b).max() / np.abs(b).max()
    print(f"largest difference: {difference:.1e} of the largest (the plain way sums in float32)")
    print(f"time, ours / plain: {ways['ours']['seconds'] / ways['plain']['seconds']:.2f}")
    print(f"memory, plain / ours: {ways['plain']['mb'] / ways['ours']['mb']:.1f}")
