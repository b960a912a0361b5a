"""`sweep`: the runs that are not done, trained somewhere; then all of them compared."""

from __future__ import annotations

import contextlib
import csv
import io
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import xarray as xr

from recovery_probe.errors import InputError, Interrupted
from recovery_probe.machine import size_of
from recovery_probe.record import store
from recovery_probe.record.folder import as_path, is_run
from recovery_probe.record.lock import Lock
from recovery_probe.record.run import open_run
from recovery_probe.record.writer import bring_back
from recovery_probe.saying import say
from recovery_probe.sweep import expect, job
from recovery_probe.sweep.engines import Engine, in_process
from recovery_probe.sweep.spec import Job, Sweep, planned
from recovery_probe.train.announce import check_room
from recovery_probe.train.fitting import check_same, links_of

TRIES = 2  # of a run that fails
DONE = ("complete", "diverged")  # a run that diverged would again
TABLE = "runs.csv"


def sweep(
    spec: Sweep,
    out: str | os.PathLike[str],
    executor: Executor | Engine | None = None,
    *,
    fail_fast: bool = False,
    estimate: bool = True,
) -> xr.Dataset:
    """Train every run of a sweep that is not done in `out`, compare them all, and return what
    `page.write` makes of them.

    A run is done when its own provenance says so; one that was stopped goes on from its
    checkpoint. So the same call after an interruption, or beside a lost machine, does what is
    left. One that fails is tried once more, and listed in the end with its message; it stops no
    other, unless `fail_fast`. `executor`: any `concurrent.futures.Executor`, or one of
    `sweep.engines`, which make them; in this process, one by one, when not said.

    Raises `InputError` before any training for a point that cannot be, a directory that holds
    other runs, and while another sweep is at work there; `Interrupted`, a `KeyboardInterrupt`, when
    it is stopped.
    """
    from recovery_probe.sweep import page

    out = as_path(out)
    jobs = planned(spec, out)
    for one in jobs:
        bring_back(one.path)
        if is_run(one.path):
            check_same(one.point, [])
        elif one.path.exists():
            raise InputError(
                f"{one.path}: in the way, and not a run: move it, or choose another out"
            )
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out)
    lock.begin()
    try:
        for one in jobs:
            job.write(one, links_of(one.plan, one.point))
        state = State(jobs, out)
        if todo := state.todo():
            tell_beforehand(jobs, todo, out, estimate)
            _train(state, executor or in_process(), fail_fast)
        state.tell_left()
        state.write()
        return page.write(spec, jobs, state.messages, out)
    finally:
        lock.close()


def status_of(path: Path) -> str:
    """Of a run that may not be there yet: `planned`, then what its provenance says."""
    return open_run(path).status if is_run(path) else "planned"


def tell_beforehand(
    jobs: Sequence[Job], todo: Sequence[Job], out: Path, estimate: bool = True
) -> None:
    """Say on standard error how much there is to do, and raise `InputError` when `out` has no room
    for it."""
    said = f"{len(jobs)} runs, {len(jobs) - len(todo)} done"
    if estimate:
        seconds, size = expect.seconds_and_bytes(todo)
        said += (
            f"; {len(todo)} to train: about {in_words(seconds)} one after the other, "
            f"{size_of(int(size))} (from an episode of the smallest and of the largest)"
        )
    say(said)
    if estimate:
        check_room(out, int(size), "make room, or choose another --out")


def in_words(seconds: float) -> str:
    """`3 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class State:
    """How far the runs of a sweep are: what their directories say, and what went wrong. Kept in
    `runs.csv`."""

    def __init__(self, jobs: Sequence[Job], out: Path) -> None:
        self.jobs, self.out = jobs, out
        self.status = {one.path: status_of(one.path) for one in jobs}
        self.messages: dict[Path, str] = dict.fromkeys(self.status, "")
        self.tries: Counter[Path] = Counter()
        self.lock = threading.Lock()  # executors tell from threads of their own
        self.began, self.ended = time.monotonic(), 0

    def todo(self) -> list[Job]:
        """What is not done, is not being trained by somebody else, and has not failed for good."""
        return [
            one
            for one in self.jobs
            if self.status[one.path] not in (*DONE, "running") and self.tries[one.path] < TRIES
        ]

    def failed(self) -> list[Job]:
        """What did not come to its end, and was tried, now or before."""
        fine = ("complete", "planned", "running")
        return [one for one in self.jobs if self.status[one.path] not in fine]

    def take(self, one: Job, future: Future[str]) -> None:
        """What came of a run."""
        error = future.exception()
        with self.lock:
            message = str(future.result() if error is None else error or type(error).__name__)
            status = status_of(one.path)
            # A worker that is gone takes others' runs with it, which had not begun.
            if not (isinstance(error, BrokenProcessPool) and status == "planned"):
                self.tries[one.path] += 1
            if message and status == "planned":
                status = "failed"
            self.status[one.path], self.messages[one.path] = status, message
            self.ended += 1
            self._tell(one)
            with contextlib.suppress(OSError):  # what fails is told, and this file can wait
                self.write()

    def tell_left(self) -> None:
        """List, on standard error, the runs that did not come to their end, and why."""
        counts = Counter(self.status.values())
        left = {status: count for status, count in counts.items() if status != "complete"}
        if left:
            said = ", ".join(f"{count} {status}" for status, count in left.items())
            print(f"{self.out}: {counts['complete']} runs complete, {said}", file=sys.stderr)
        for one in self.failed():
            why = self.messages[one.path] or open_run(one.path).provenance.get("message", "")
            print(f"  {one.path.relative_to(self.out)}: {why}", file=sys.stderr)

    def _tell(self, one: Job) -> None:
        left = self.todo()
        done = sum(status in DONE for status in self.status.values())
        text = f"{done} of {len(self.jobs)} runs: {one.path.relative_to(self.out)} "
        text += self.status[one.path]
        if message := self.messages[one.path]:
            text += f" ({message.splitlines()[-1]})"
        if left:
            each = (time.monotonic() - self.began) / self.ended
            text += f"; {in_words(each * len(left))} left"
        say(text)

    def write(self) -> None:
        """The table of run directories."""
        file = io.StringIO()
        table = csv.writer(file)
        table.writerow(["path", "role", "seed", "status", "message"])
        for one in self.jobs:
            path = one.path.relative_to(self.out)
            state = self.status[one.path], self.messages[one.path]
            table.writerow([path, one.point.role, one.point.settings.seed, *state])
        store.write_text(self.out / TABLE, file.getvalue())


def _train(state: State, engine: Executor | Engine, fail_fast: bool) -> None:
    """Pass after pass over what is not done."""
    while todo := state.todo():
        before = dict(state.status), dict(state.tries)
        executor = engine if isinstance(engine, Executor) else engine()
        try:
            _pass(state, executor, todo, fail_fast)
        except KeyboardInterrupt as error:
            _stop(executor)
            done = sum(status_of(one.path) in DONE for one in state.jobs)
            raise Interrupted(
                f"{state.out}: stopped, {done} of {len(state.jobs)} runs done; the same command "
                "goes on",
                getattr(error, "signal", 0),
            ) from None
        if executor is not engine:
            executor.shutdown()
        if (dict(state.status), dict(state.tries)) == before:
            raise InputError(
                f"{state.out}: workers end before they begin a run: "
                + next(iter(set(state.messages.values()) - {""}), "nothing is said of why")
            )
        if fail_fast and state.failed():
            return


def _pass(state: State, executor: Executor, todo: Sequence[Job], fail_fast: bool) -> None:
    futures: list[Future[str]] = []
    told = threading.Semaphore(0)  # a future is done before those who wait for it are called

    def ended(one: Job, future: Future[str]) -> None:
        try:
            if future.cancelled():
                return
            state.take(one, future)
            if fail_fast and state.status[one.path] != "complete":
                for other in futures:
                    other.cancel()
        finally:
            told.release()

    for one in todo:
        if fail_fast and any(state.tries[other.path] for other in state.failed()):
            break
        try:
            future = executor.submit(job.train, str(one.config), str(one.path))
        except BrokenProcessPool:  # one of those before took it along
            break
        futures.append(future)
        future.add_done_callback(lambda future, one=one: ended(one, future))  # type: ignore[misc]
    wait(futures)
    for _ in futures:
        told.acquire()


def _stop(executor: Executor) -> None:
    """Let runs of this machine end their episode and write a checkpoint; those of a cluster go
    on."""
    executor.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.terminate()
    for child in multiprocessing.active_children():
        child.join()
