"""What an episode costs at the end of a long run, against its beginning.

    python tests/benchmarks/bench_long.py [--episodes 2000] [--window 200]

A tiny network, one step an episode, losses and the default recorders but checkpoints: what is
left is the loop, the record and the progress. Seconds of the processor that the process took.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import recovery_probe as rp
from recovery_probe.recorders import Episode, Layout, Recorder
from recovery_probe.testing import toy_settings

TRAINED = 20


class Clock(Recorder):
    """Notes when every episode ends."""

    name = "clock"
    times: list[float]

    def start(self, training: rp.Training) -> Layout:
        Clock.times = []
        return Layout()

    def after_episode(self, episode: Episode) -> None:
        Clock.times.append(time.process_time())


def measure(episodes: int, window: int) -> None:
    settings = toy_settings(
        epochs=episodes // TRAINED,
        steps=1,
        documents={"count": TRAINED, "held_out": 5, "tokens": 8, "min_tokens": 8},
        model={"depth": 1, "width": 16, "heads": 2, "vocabulary": 300},
        optimizer={"lr": 1e-6},
        recorders=["token_losses", "residual_stream", "gradients", "weight_deltas"],
    )
    with tempfile.TemporaryDirectory() as aside:
        rp.fit(settings, Path(aside) / "run", hooks=[Clock])
    seconds = np.diff(Clock.times)
    first, last = np.mean(seconds[:window]), np.mean(seconds[-window:])
    print(
        f"{len(seconds)} episodes: {first * 1e3:.2f} ms each in the first {window}, "
        f"{last * 1e3:.2f} ms in the last {window}: {last / first:.2f} of it; "
        f"all {seconds.sum():.1f} s; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--window", type=int, default=200)
    arguments = parser.parse_args()
    measure(arguments.episodes, arguments.window)
