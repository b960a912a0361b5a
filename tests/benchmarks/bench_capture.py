"""What the default recorders cost: a run with them over the same run without any.

    python tests/benchmarks/bench_capture.py [--shape quickstart large] [--rounds 3]

One process; whole epochs with and without recorders take turns. Ratios are of medians. Bytes are
those on disk, checkpoints apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import recovery_probe as rp
from recovery_probe import documents, models
from recovery_probe.progress import Progress
from recovery_probe.recorders import Recording, RunInfo, find
from recovery_probe.run import Writer
from recovery_probe.schedule import document_of_episode
from recovery_probe.sketch import ModuleSketches
from recovery_probe.train import batch, train

SHAPES = {
    "quickstart": {"epochs": 1},
    "large": {
        "epochs": 1,
        "model": {"width": 576, "depth": 30, "heads": 9},
        "documents": {"count": 12, "held_out": 2, "tokens": 128, "min_tokens": 128},
    },
}


def epoch(settings: rp.Settings, folder: Path) -> tuple[float, dict[str, float], int]:
    """Seconds of one epoch, seconds of each recorder, bytes recorded."""
    model = models.load(settings)
    docs = documents.load(settings, model.tokenize)
    tokens, targets = batch(docs, model.device)
    schedule = document_of_episode(settings)
    sketches = ModuleSketches(model.parameters, settings.sketch)
    info = RunInfo(settings, model, tokens, targets, docs.lengths, schedule, folder, sketches)
    recording = Recording(find(settings), info)
    recording.rehearse()
    writer = Writer.create(folder, settings, docs, schedule, provenance={})
    recording.lay_out(writer)
    progress = Progress("", len(schedule), per_epoch=10**9)
    start = time.perf_counter()
    with recording.attached():
        train(info, recording, writer, progress)
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in (folder / "record.zarr").rglob("*") if f.is_file())
    cost = {name: c["seconds"] for name, c in recording.finish(seconds)["recorders"].items()}
    return seconds, cost, size


def measure(name: str, rounds: int) -> None:
    on = rp.preset("quickstart", control="none", **SHAPES[name])
    off = rp.preset("quickstart", control="none", recorders=[], **SHAPES[name])
    found: dict[str, list[tuple[float, dict[str, float], int]]] = {"off": [], "on": []}
    for _ in range(rounds):
        for which, settings in (("off", off), ("on", on)):
            with tempfile.TemporaryDirectory() as aside:
                found[which].append(epoch(settings, Path(aside) / "run"))
    medians = {which: statistics.median(s for s, _, _ in runs) for which, runs in found.items()}
    steps = on.documents.count * on.steps
    print(
        f"{name}: {on.model.depth} blocks, {on.model.width} wide, {on.documents.tokens} tokens, "
        f"{steps} steps, {rounds} rounds"
    )
    for which, runs in found.items():
        seconds = [s for s, _, _ in runs]
        print(f"  {which:<4}{medians[which]:8.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"  on / off: {medians['on'] / medians['off']:.3f}")
    for recorder in found["on"][0][1]:
        share = statistics.median(cost[recorder] / s for s, cost, _ in found["on"])
        print(f"  {recorder}: {share:.1%} of the run")
    extra = found["on"][0][2] - found["off"][0][2]
    print(f"  recorded: {extra / steps / 1e3:.1f} kB a step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for shape in arguments.shape:
        measure(shape, arguments.rounds)
