"""What a run asks of the machine it is trained on: threads, quiet signals, the same numbers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from recovery_probe.training import Training

LOOK, BUSY = 0.2, 40  # seconds, and percent of all processors


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end the process wait until the run says how it ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in ignored.items():
            signal.signal(number, handler)


@contextmanager
def stoppable(training: Training) -> Iterator[list[int]]:
    """A first SIGINT or SIGTERM asks a training to stop after its episode, a second one is what it
    always is. Yields the signals that came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before: dict[int, Any] = {}

    def ask(number: int, _: object) -> None:
        came.append(number)
        training.stopping = True
        put_back()
        os.write(2, b"stopping after this episode, with a checkpoint; once more: at once\n")

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        # An interrupt that came while a library was imported may have been dropped there.
        if getattr(signal.getsignal(number), "came", None):
            raise KeyboardInterrupt
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a script's background jobs
            before[number] = signal.signal(number, ask)
    try:
        yield came
    finally:
        if not came:
            put_back()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with so many threads on the CPU, 0 for as many as it chooses. Says so when others are
    at work here: threads that wait for one another spin, and two runs of two threads on two cores
    slow each other fivefold."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    if torch.get_num_threads() > 1 and (busy := psutil.cpu_percent(LOOK)) > BUSY:
        print(
            f"note: others keep this machine's processors {busy:.0f}% busy, and this run takes "
            f"{torch.get_num_threads()} threads: they slow one another; give each run --threads 1",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        torch.set_num_threads(before)


def size_of(size: float) -> str:
    """`1.2 GB`, `340.0 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels, and a global generator (dropout draws from it) that is put back."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    gpus = [device.index or 0] if device.type == "cuda" else []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
