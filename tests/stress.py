"""Long checks of what machines and people do to a run, with totals; not part of the tests.

    python tests/stress.py [kills …] [--count 30] [--seed 0]

kills       SIGKILL at random moments (`kills.py`) of runs that go on from what is left, some of
            them killed again: the record in the end is the undisturbed run's, bit for bit
signals     SIGINT, SIGTERM and SIGKILL, one or several, at random moments of the command: what is
            there opens, is called what it is, and equals the undisturbed run as far as it goes
readers     a run read over and over while it is written: no row of it is ever half there
trainers    two trainings into one directory, with and without --overwrite: one whole run
disk        disks of a few sizes, too small for the record: one line, and what is there is whole
corruption  a byte changed, a file cut off or gone, anywhere in a run: the same numbers, or an error
            that names the run
settings    random settings, of every plug-in too: trained, or refused by the name of a setting,
            with nothing left behind
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import tyro
from generated import configurations, materials, tried
from kills import VARIANTS, killed_and_resumed, undisturbed
from kills import kills as moments_of

import recovery_probe as rp

TINY = [
    "quickstart",
    "--control",
    "none",
    "--epochs",
    "3",
    "--steps",
    "3",
    "--documents.count",
    "5",
    "--documents.held_out",
    "2",
    "--documents.tokens",
    "32",
    "--documents.min_tokens",
    "32",
    "--model.width",
    "32",
    "--model.depth",
    "2",
    "--model.heads",
    "2",
    "--model.vocabulary",
    "300",
]
Section = Literal["kills", "signals", "readers", "trainers", "disk", "corruption", "settings"]
Outcome = tuple[bool, str]  # whether it went well, and what happened


@dataclass(frozen=True)
class Stress:
    """Which checks, and how many times."""

    # sections to do; all when not given
    sections: tyro.conf.Positional[tuple[Section, ...]] = ()
    # how many of each
    count: int = 30
    # decides moments, places and values
    seed: int = 0


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recovery_probe.train", *TINY, "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def arrays(run: rp.Run) -> dict[str, np.ndarray]:
    """Everything recorded, by name."""
    found = {"losses": run.losses.values, "train_loss": run.train_loss.values}
    for name in run.recorders:
        for array, values in run.recorder(name).data_vars.items():
            found[f"{name}/{array}"] = values.values
    return found


def a_prefix(run: rp.Run, whole: dict[str, np.ndarray]) -> str:
    """What differs from the undisturbed run, as far as this one goes; nothing when all is well."""
    run.check()
    for name, values in arrays(run).items():
        rows = len(values) if "/" in name else run.rows * (1 if name == "losses" else 0)
        if name == "train_loss":
            rows = run.episodes_done * run.config.steps
        if not np.array_equal(values[:rows], whole[name][:rows], equal_nan=True):
            return f"{name} differs"
        if name in ("losses", "train_loss") and not np.isfinite(values[:rows]).all():
            return f"{name} has a torn row"
    return ""


def kills(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
    whole = {name: undisturbed(name, folder / f"whole-{i}") for i, name in enumerate(VARIANTS)}
    for i in range(rounds):
        name = list(VARIANTS)[i % len(VARIANTS)]
        moments = moments_of(rng, whole[name])
        these = [next(moments) for _ in range(rng.choice((1, 1, 2)))]
        wrong = killed_and_resumed(name, folder / "run", whole[name], *these)
        yield (
            not wrong,
            f"{name}, {these}: {wrong}" if wrong else f"{name}, killed {len(these)} times",
        )


def signals(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
    reference = folder / "reference"
    started = time.monotonic()
    start(reference).communicate()
    lasts = time.monotonic() - started
    whole = arrays(rp.open_run(reference))
    expected = {
        signal.SIGKILL: ("killed", -9),
        signal.SIGTERM: ("interrupted", 143),
        signal.SIGINT: ("interrupted", 130),
    }
    for i in range(rounds):
        number, out = rng.choice(list(expected)), folder / f"killed-{i}"
        process = start(out)
        time.sleep(rng.uniform(0.3, lasts))
        for _ in range(rng.choice((1, 1, 1, 4))):
            process.send_signal(number)
            time.sleep(0.01)
        said = process.communicate()[1]
        if "Traceback" in said:
            yield False, f"{number.name}: a traceback: {said.splitlines()[-1]}"
        elif not out.exists():
            yield True, f"{number.name}: nothing there yet"
        else:
            run = rp.open_run(out)
            status, code = expected[number]
            done = run.status == "complete"
            wrong = a_prefix(run, whole)
            if not done and (run.status, process.returncode) != (status, code):
                wrong = wrong or f"status {run.status}, exit code {process.returncode}"
            yield not wrong, f"{number.name}: {wrong or 'a whole record'}"
        left = [f.name for f in folder.iterdir() if f.name.startswith(".")]
        if left and number != signal.SIGKILL:
            yield False, f"{number.name}: left {left}"
        shutil.rmtree(out, ignore_errors=True)


def readers(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
    out = folder / "watched"
    process = start(out, "--epochs", str(3 * rounds))
    while process.poll() is None:
        if out.exists():
            run = rp.open_run(out)
            rows = run.losses.values[: run.rows]  # none, before the first is committed
            torn = not np.isfinite(rows).all()
            gradients = run.recorder("gradients").norm.values
            bare = int((~np.isfinite(gradients)).any(axis=1).sum())
            torn |= bare > 0 or len(gradients) != 3 * run.episodes_done
            told = f"{len(rows)} rows, {len(gradients)} of gradients, {bare} of them without values"
            yield not torn, f"a torn row: {told}" if torn else "whole rows"
        time.sleep(rng.uniform(0, 0.05))
    process.communicate()


def trainers(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
    whole: dict[str, dict[str, np.ndarray]] = {}
    for seed in ("0", "1"):
        start(folder / seed, "--seed", seed).communicate()
        whole[seed] = arrays(rp.open_run(folder / seed))
    for i in range(max(1, rounds // 5)):
        out, overwrite = folder / f"both-{i}", rng.choice(([], ["--overwrite"]))
        first = start(out)
        time.sleep(rng.choice((0.0, 0.01, 1.5, 4.0)))
        second = start(out, "--seed", "1", *overwrite)
        said = first.communicate()[1], second.communicate()[1]
        codes = sorted((first.returncode, second.returncode))
        run = rp.open_run(out)
        wrong = a_prefix(run, whole[str(run.config.seed)])
        if (
            run.status != "complete"
            or codes not in ([0, 2], [0, 0])
            or "Traceback" in "".join(said)
        ):
            wrong = f"status {run.status}, exit codes {codes}"
        yield not wrong, wrong or "one whole run"


def disk(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
    place = folder / "small"
    place.mkdir()
    for _ in range(max(1, rounds // 5)):
        size = rng.choice((600, 1000, 1500, 2500))
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            yield True, "not tried: no small disk can be made here"
            return
        try:
            for force in ([], ["--force"]):
                process = start(place / "run", *force)
                said = process.communicate()[1]
                wrong = "a traceback" if "Traceback" in said else ""
                if (place / "run").exists():
                    run = rp.open_run(place / "run")
                    run.losses, run.train_loss  # noqa: B018
                    wrong = wrong or ("" if process.returncode in (0, 2) else "exit code")
                yield not wrong, wrong or f"exit code {process.returncode}"
                shutil.rmtree(place / "run", ignore_errors=True)
        finally:
            subprocess.run(["umount", str(place)], check=True)


def corruption(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
    reference = folder / "reference"
    start(reference).communicate()
    shutil.rmtree(reference / "analyses", ignore_errors=True)
    whole = arrays(rp.open_run(reference))

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        for _ in range(8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)

    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])

    ways: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "gone": Path.unlink}
    for i in range(rounds):
        out = folder / f"corrupt-{i}"
        shutil.copytree(reference, out)
        files = [f for f in out.rglob("*") if f.is_file() and f.stat().st_size]
        kept = ("record.zarr", "config.toml", "provenance.json")
        files = [f for f in files if f.relative_to(out).parts[0] in kept]
        file, way = rng.choice(files), rng.choice(list(ways))
        ways[way](file)
        where = f"{way} {file.relative_to(out).parts[0]}"
        try:
            run = rp.open_run(out)
            run.check()
            same = all(np.array_equal(v, whole[n], equal_nan=True) for n, v in arrays(run).items())
            yield same, f"{where}: {'the same numbers' if same else f'OTHER numbers ({file.name})'}"
        except rp.InputError as error:
            yield str(out) in str(error), f"{where}: an error that names the run"
        except Exception as error:
            yield False, f"{where}: {type(error).__name__} ({file.relative_to(out)})"
        shutil.rmtree(out)


def settings(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
    files = folder / "files"
    files.mkdir()
    materials(files)
    outcomes: list[Outcome] = []

    @hypothesis.seed(rng.getrandbits(64))
    @hypothesis.settings(
        max_examples=rounds,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(configurations(files))
    def one(drawn: tuple[dict[str, Any], list[str]]) -> None:
        place = folder / "tried"
        place.mkdir()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                outcomes.append((True, tried(*drawn, place / "run")))
        except Exception as error:
            outcomes.append((False, f"{type(error).__name__}: {error}: {drawn[0]}"))
        shutil.rmtree(place)

    one()
    yield from outcomes


SECTIONS = {f.__name__: f for f in (kills, signals, readers, trainers, disk, corruption, settings)}


def stress(asked: Stress) -> int:
    """Do the sections and tell the totals; the number of cases that went badly."""
    bad = 0
    for name in asked.sections or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="recovery_probe-stress-") as folder:
            rng = random.Random(f"{asked.seed} {name}")
            outcomes = list(SECTIONS[name](asked.count, rng, Path(folder)))
        wrong = [what for well, what in outcomes if not well]
        bad += len(wrong)
        print(f"{name}: {len(outcomes)} tried, {len(outcomes) - len(wrong)} well, {len(wrong)} bad")
        for what, count in Counter(what for well, what in outcomes if well).most_common():
            print(f"    {count:4} {what}")
        for what, count in Counter(wrong).most_common():
            print(f"BAD {count:4} {what}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(bool(stress(tyro.cli(Stress, description=__doc__))))
