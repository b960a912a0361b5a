"""The command line in a process of its own, that begins with its libraries loaded: they are most
of a tiny command's time."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kills import LIBRARIES

import recovery_probe as rp

LONG = "--control none --epochs 500 --documents.count 4 --model.depth 1 --model.width 32 --steps 2"


class Command:
    """`python -m recovery_probe WORDS…`, as `subprocess.Popen` would have it."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.said = Path(tempfile.mkdtemp()) / "stderr"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        args = (words, str(self.said))
        self.process = context.Process(target=_run, args=args)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def poll(self) -> int | None:
        return self.process.exitcode

    def ended(self, seconds: float = 90) -> tuple[int, str]:
        """How it ended, once it has, and what it said. Raises `subprocess.TimeoutExpired`."""
        self.process.join(seconds)
        said = self.said.read_text() if self.said.exists() else ""
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.words, seconds, stderr=said)
        return self.process.exitcode, said


def _run(words: tuple[str, ...], said: str) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["recovery_probe"]
    from recovery_probe.__main__ import run

    run(*words)


def start(out: Path, *words: str) -> Command:
    """A long training."""
    return Command("train", "quickstart", "--out", str(out), *LONG.split(), *words)


def wait_for(out: Path, episodes: int, seconds: float = 90) -> rp.Run:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (out / "record.zarr").exists() and rp.open_run(out).episodes_done >= episodes:
            return rp.open_run(out)
        time.sleep(0.05)
    raise AssertionError(f"no {episodes} episodes in {seconds} s")
