"""Sweeps trained anywhere, and stopped: the records are the same, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from sweeping import ONE, SIX, check_same

from recovery_probe.record.folder import is_run
from recovery_probe.record.lock import is_locked
from recovery_probe.sweep import ray, read, slurm, sweep


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(SIX)
    return file


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep of `SIX`, trained in this process. Do not write to it."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.toml").write_text(SIX)
    sweep(read(folder / "tiny.toml"), folder / "out", estimate=False)
    return folder / "out"


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine."""
    import ray as library

    # Workers do not get this process' path.
    path = os.pathsep.join(p for p in sys.path if p)
    library.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    library.shutdown()


def engines(folder: Path) -> dict[str, Callable[[], Any]]:
    return {
        "ray": lambda: ray(cpus=1),
        "slurm, local": lambda: slurm(folder / "slurm", {"timeout_min": 5}, "local"),
        "slurm, debug": lambda: slurm(folder / "slurm", {"timeout_min": 5}, "debug"),
        "an executor of the user's": lambda: OneByOne(),
        "one that calls late": lambda: Late(),
    }


class OneByOne(Executor):
    """As another library's might be."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Late(Executor):
    """Tells that a run is done well before it calls who asked to be called."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Slow()
        threading.Thread(target=lambda: future.set_result(fn(*args, **kwargs))).start()
        return future


class Slow(Future[Any]):
    def _invoke_callbacks(self) -> None:
        time.sleep(1)
        super()._invoke_callbacks()  # type: ignore[misc]


@pytest.mark.parametrize("name", engines(Path()))
def test_every_engine_gives_the_same_records(
    name: str, whole: Path, tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "ray":
        request.getfixturevalue("cluster")
    out = tmp_path / "out"
    tiny.write_text(ONE)
    sweep(read(tiny), out, engines(tmp_path)[name](), estimate=False)
    check_same(out, whole)


def start(tiny: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "recovery_probe.sweep", str(tiny), "--out", str(out), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.02)


def begun(out: Path) -> list[Path]:
    """Runs that are being trained."""
    found = [p.parent for p in out.rglob("lock.json")]
    return [path for path in found if is_run(path) and is_locked(path)]


@pytest.mark.parametrize(
    ("engine", "number", "text"),
    [
        pytest.param("processes", signal.SIGINT, ONE, id="processes, interrupted"),
        pytest.param(
            "processes", signal.SIGKILL, SIX, id="processes, killed", marks=pytest.mark.slow
        ),
        pytest.param("ray", signal.SIGKILL, SIX, id="ray, killed", marks=pytest.mark.slow),
    ],
)
def test_workers_and_whoever_began_them_are_stopped(
    engine: str, number: int, text: str, whole: Path, tiny: Path, tmp_path: Path
) -> None:
    """A worker is killed; then the command is, or it is asked to stop; then it is given again."""
    tiny.write_text(text)
    out = tmp_path / "out"
    words = ["--engine", engine, *(["--workers", "1"] if text == ONE else [])]
    process = start(tiny, out, *words)
    try:
        wait_for(lambda: begun(out))
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            os.kill(json.loads((begun(out)[0] / "lock.json").read_text())["pid"], signal.SIGKILL)
        wait_for(lambda: begun(out) or process.poll() is not None)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert "Traceback" not in said
        assert process.returncode in ((130, 0) if number == signal.SIGINT else (-9, 0))
        wait_for(lambda: not begun(out), 30)  # workers do not outlive it
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    again = start(tiny, out, *words)
    assert "Traceback" not in again.communicate(timeout=200)[1]
    assert again.returncode == 0
    check_same(out, whole)
