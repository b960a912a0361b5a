"""What the default recorders cost: a run with them over the same run without any.

    python tests/benchmarks/bench_capture.py [--shape quickstart large] [--epochs 1]

Two processes train side by side and take turns, one episode each, so that a machine that slows
down slows both: one waits while the other works. Times are seconds of the processor that each
process took. Ratios are of sums; the quartiles are of the ratios of single episodes. Bytes are
those on disk, checkpoints apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import tomllib
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import recovery_probe as rp
from recovery_probe import config
from recovery_probe.interventions.acting import Interventions
from recovery_probe.record.layout import Timeline
from recovery_probe.record.writer import Writer
from recovery_probe.recorders.recording import Recording, find
from recovery_probe.train.loop import train
from recovery_probe.train.progress import Progress

SHAPES: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "large": {
        "model": {"width": 576, "depth": 30, "heads": 9},
        "documents": {"count": 12, "held_out": 2, "tokens": 128, "min_tokens": 128},
    },
}


class Turns(Progress):
    """Hands the machine over after every episode, and keeps the seconds of its own."""

    def __init__(self, pipe: Connection, timeline: Timeline) -> None:
        super().__init__("", timeline)
        # of the processor, by episode; and by the clock, as recorders are timed
        self.pipe, self.seconds, self.wall = pipe, list[float](), 0.0
        self.wait()

    def tell(self, training: rp.Training) -> None:
        self.seconds.append(time.process_time() - self.since)
        self.wall += time.perf_counter() - self.began
        if training.done < self.episodes:
            self.wait()

    def wait(self) -> None:
        self.pipe.send("ready")
        self.pipe.recv()
        self.since, self.began = time.process_time(), time.perf_counter()


def work(values: str, pipe: Connection) -> None:
    """Train, an episode at each word; then send what was measured."""
    settings = config.from_dict(tomllib.loads(values))
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / "run"
        training = rp.Training.open(settings, folder)
        interventions = Interventions([], training)
        recording = Recording(find(settings), training, interventions)
        recording.rehearse()
        timeline = training.timeline
        writer = Writer.create(folder, settings, training.documents, timeline, provenance={})
        recording.lay_out(writer)
        writer.put_in_place()
        turns = Turns(pipe, timeline)
        with recording.attached():
            train(training, interventions, recording, writer, turns)
        size = sum(f.stat().st_size for f in (folder / "record.zarr").rglob("*") if f.is_file())
        cost = recording.finish(turns.wall)["recorders"]
    pipe.send((turns.seconds, {name: c["share"] for name, c in cost.items()}, size))
    pipe.recv()  # its going would slow the other's last episode


def measure(name: str, epochs: int) -> None:
    recorders = list(rp.Settings().recorders)
    on = rp.preset("quickstart", epochs=epochs, recorders=recorders, **SHAPES[name])
    off = rp.changed(on, recorders=[])
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for which, settings in (("off", off), ("on", on)):
        pipes[which], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(config.to_toml(settings), theirs)))
        processes[-1].start()
        pipes[which].recv()  # loaded, and waiting for its turn
    episodes = on.documents.count * epochs
    measured = {}
    for episode in range(episodes):
        for which in ("off", "on") if episode % 2 else ("on", "off"):
            pipes[which].send("go")
            message = pipes[which].recv()  # ready again, or all that was measured
            if episode == episodes - 1:
                measured[which] = message
    for which, process in zip(measured, processes, strict=True):
        pipes[which].send("go")
        process.join()
    seconds = {which: np.array(measured[which][0]) for which in ("off", "on")}
    steps = episodes * on.steps
    print(
        f"{name}: {on.model.depth} blocks, {on.model.width} wide, {on.documents.tokens} tokens, "
        f"{steps} steps with and {steps} without"
    )
    each = seconds["on"] / seconds["off"]
    low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
    print(
        f"  on {seconds['on'].sum():.2f} s, off {seconds['off'].sum():.2f} s\n"
        f"  on / off: {seconds['on'].sum() / seconds['off'].sum():.3f} "
        f"(by episode: median {middle:.3f}, quartiles {low:.3f} to {high:.3f})"
    )
    for recorder, share in measured["on"][1].items():
        print(f"  {recorder}: {share:.1%} of the run, by its own clock")
    extra = measured["on"][2] - measured["off"][2]
    print(f"  recorded: {extra / steps / 1e3:.1f} kB a step", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    for shape in arguments.shape:
        measure(shape, arguments.epochs)
