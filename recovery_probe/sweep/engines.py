"""Where the runs of a sweep are trained: makers of executors, of the standard interface
`concurrent.futures.Executor`. Any other executor does as well.

A run is a function of two paths (`job.train`), so nothing but two texts is sent to a worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from recovery_probe.errors import InputError

Engine = Callable[[], Executor]


class InProcess(Executor):
    """One after the other, here, as each is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def in_process() -> Engine:
    """In this process, one after the other."""
    return InProcess


def processes(workers: int | None = None) -> Engine:
    """In processes of this machine, as many as it has cores when not said, each with its share of
    the cores as threads, and one of the GPUs that are visible. What they print goes into a file
    beside the run."""
    cores = len(psutil.Process().cpu_affinity() or [0])
    count = cores if workers is None else workers
    if count < 1:
        raise InputError(f"workers = {workers}: expected 1 or more")
    return lambda: Processes(count, max(1, cores // count))


class Processes(ProcessPoolExecutor):
    """Spawned processes, which import the libraries once."""

    def __init__(self, workers: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        turn = context.Value("i", 0)
        super().__init__(workers, context, _begin, (turn, threads))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_logged, fn, *args, **kwargs)


def _begin(turn: Any, threads: int) -> None:
    """A worker before its first run: before torch is imported, which reads these once."""
    with turn.get_lock():
        worker, turn.value = turn.value, turn.value + 1
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if visible := _gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[worker % len(visible)]
    # The terminal's Ctrl-C comes to all; who started this one passes it on, once, as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _gpus() -> list[str]:
    """The GPUs that are visible, by what CUDA calls them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word for word in named.split(",") if word]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def _end_with_parent() -> None:
    """Stop after the episode, with a checkpoint, when who started this process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _logged(fn: Callable[..., Any], toml: str, out: str) -> Any:
    with (
        open(f"{out}.log", "a", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return fn(toml, out)


def ray(address: str | None = None, cpus: float = 1, gpus: float = 0) -> Engine:
    """On a Ray cluster, at `address`, or one that is started here; `cpus` and `gpus` for each run.
    A run whose worker is lost is begun again, and goes on from its checkpoint."""
    if not _installed("ray"):
        raise InputError("--engine ray: Ray is not installed: pip install 'recovery_probe[ray]'")
    return lambda: OnRay(address, cpus, gpus)


class OnRay(Executor):
    """A Ray task for each run."""

    def __init__(self, address: str | None, cpus: float, gpus: float) -> None:
        import ray

        self.started = not ray.is_initialized()
        if self.started:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": LOST}
        self.task = ray.remote(_on_ray).options(**options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        found: Future[Any] = self.task.remote(fn, *args, **kwargs).future()
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        import ray

        if self.started:
            ray.shutdown()


LOST = 3  # workers that a run may lose


def _on_ray(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


def slurm(
    folder: Path, parameters: Mapping[str, Any], cluster: str | None = None, cap: int = 64
) -> Engine:
    """On SLURM, through submitit: as arrays of at most `cap` runs at once. `parameters` are
    submitit's (`timeout_min`, `slurm_partition`, `mem_gb`, …); its files go into `folder`. A run
    that is preempted, or comes to its time limit, is queued again and goes on from its checkpoint.
    `cluster`: `local` for processes of this machine, `debug` for this one; SLURM when not said."""
    if not _installed("submitit"):
        raise InputError(
            "--engine slurm: submitit is not installed: pip install 'recovery_probe[slurm]'"
        )
    if cluster is None and shutil.which("sbatch") is None:  # submitit would take this machine
        raise InputError(
            "--engine slurm: no sbatch here: run it where jobs are submitted, or with --cluster "
            "local or debug"
        )
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    try:
        executor.update_parameters(**{"slurm_array_parallelism": cap, **parameters})
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"--slurm: {' '.join(str(error).split())}") from None
    return lambda: OnSlurm(executor)


class OnSlurm(Executor):
    """submitit's executor behind the standard interface. What is submitted within a moment becomes
    one array."""

    MOMENT = 0.5  # seconds

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.waiting: list[tuple[Future[Any], tuple[Any, ...]]] = []
        self.jobs: list[tuple[Future[Any], Any]] = []
        self.lock, self.over = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self.lock:
            self.waiting.append((future, (fn, *args)))
        return future

    def _watch(self) -> None:
        while not self.over.is_set() or self.waiting or self.jobs:
            time.sleep(self.MOMENT)
            with self.lock:
                batch, self.waiting = self.waiting, []
            batch = [(f, words) for f, words in batch if f.set_running_or_notify_cancel()]
            if batch:
                try:
                    with self.executor.batch():
                        sent = [self.executor.submit(Requeued(), *words) for _, words in batch]
                    futures = [future for future, _ in batch]
                    self.jobs += list(zip(futures, sent, strict=True))
                except Exception as error:  # sbatch is not there, or refuses
                    for future, _ in batch:
                        future.set_exception(error)
            for future, job in list(self.jobs):
                if job.done():
                    self.jobs.remove((future, job))
                    if failed := job.exception():
                        future.set_exception(failed)
                    else:
                        future.set_result(job.result())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            with self.lock:
                for future, _ in self.waiting:
                    future.cancel()
        self.over.set()
        if wait:
            self.thread.join()


class Requeued:
    """A run that submitit queues again when its time is over, or it is preempted."""

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    def checkpoint(self, fn: Callable[..., Any], *args: Any) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, fn, *args)


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
