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
from pathlib import Path

import numpy as np
import torch

import recovery_probe as rp
from recovery_probe import documents, models
from recovery_probe.recorders import RunInfo
from recovery_probe.recorders.document_gradients import DocumentGradients
from recovery_probe.schedules import document_of_episode
from recovery_probe.sketch import ModuleSketches
from recovery_probe.train import batch, losses_of

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def start(options: argparse.Namespace) -> RunInfo:
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
    model = models.load(settings)
    docs = documents.load(settings, model.tokenize)
    tokens, targets = batch(docs, model.device)
    sketches = ModuleSketches(model.parameters, settings.sketch)
    schedule = document_of_episode(settings)
    return RunInfo(settings, model, tokens, targets, docs.lengths, schedule, Path(), sketches)


def plain(info: RunInfo) -> torch.Tensor:
    """T gradients, kept, and their products."""
    parameters = list(info.model.parameters.values())
    info.model.train(False)
    kept = torch.empty(len(info.tokens), sum(p.numel() for p in parameters))
    for i, row in enumerate(kept):
        losses_of(info.model, info.tokens[i : i + 1], info.targets[i : i + 1])[0].backward()
        torch.cat([p.grad.flatten() for p in parameters], out=row)
        for p in parameters:
            p.grad = None
    return kept @ kept.T


def one(options: argparse.Namespace) -> None:
    """Time and memory of one way, printed as JSON."""
    info = start(options)
    if options.way == "ours":
        recorder = DocumentGradients()
        recorder.start(info)

        def products() -> torch.Tensor:
            return recorder.products().sum(0)
    else:

        def products() -> torch.Tensor:
            return plain(info)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        found = products()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    told = {"seconds": statistics.median(seconds[1:]), "mb": peak / 1024, "gram": found.tolist()}
    print(json.dumps(told))


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
        one(options)
    else:
        found = {}
        for way in ("ours", "plain"):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **ALLOCATOR}
            )
            found[way] = json.loads(done.stdout)
            print(
                f"{way:<6}{found[way]['seconds']:8.3f} s, {found[way]['mb']:8.1f} MB more at peak"
            )
        a, b = (np.array(found[way]["gram"]) for way in ("ours", "plain"))
        difference = np.abs(a - b).max() / np.abs(b).max()
        print(
            f"largest difference: {difference:.1e} of the largest (the plain way sums in float32)"
        )
        print(f"time, ours / plain: {found['ours']['seconds'] / found['plain']['seconds']:.2f}")
        print(f"memory, plain / ours: {found['plain']['mb'] / found['ours']['mb']:.1f}")
