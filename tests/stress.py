"""Long checks of what machines and people do to a run, with totals; not part of the tests.

    python tests/stress.py [--section kills] [--section …] [--rounds 30] [--seed 0]

kills       signals at random moments of real trainings: whatever is there opens, is called what it
            is, and equals the undisturbed run bit for bit as far as it goes
readers     a run read over and over while it is written: no row of it is ever half there
trainers    two trainings into one directory, with and without --overwrite: one whole run
disk        disks of a few sizes, too small for the record: one line, and what is there is whole
corruption  a byte changed, a file cut off or gone, anywhere in a run: the same numbers, or an error
            that names the run
settings    random settings: trained, or one line and exit code 2
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
from typing import Literal

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import tyro

import recovery_probe as rp
from recovery_probe.cli import main

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
Outcome = tuple[bool, str]  # whether it went well, and what happened


@dataclass(frozen=True)
class Stress:
    """Which checks, and how many times."""

    # sections to do; all when not given
    section: tyro.conf.UseAppendAction[
        tuple[Literal["kills", "readers", "trainers", "disk", "corruption", "settings"], ...]
    ] = ()
    # rounds of each
    rounds: int = 30
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
        rows = len(values) if "/" in name else run._rows * (1 if name == "losses" else 0)
        if name == "train_loss":
            rows = run.episodes_done * run.config.steps
        if not np.array_equal(values[:rows], whole[name][:rows], equal_nan=True):
            return f"{name} differs"
        if name in ("losses", "train_loss") and not np.isfinite(values[:rows]).all():
            return f"{name} has a torn row"
    return ""


def kills(rounds: int, rng: random.Random, folder: Path) -> Iterator[Outcome]:
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
            rows = run.losses.values[: run._rows]  # none, before the first is committed
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
    values = {
        "epochs": ("1", "2", "0", "-1", "x", "1000000000"),
        "steps": ("1", "2", "0", "1000000000"),
        "documents.count": ("2", "5", "1", "100000", "1000000000"),
        "documents.tokens": ("2", "16", "0", "4096", "1000000000"),
        "documents.min_tokens": ("2", "16", "100000"),
        "documents.source": ("python-topics", "lee", "nowhere", "/dev/null", "hf:no/no"),
        "model.width": ("32", "33", "0", "1000000000"),
        "model.depth": ("1", "2", "0", "1000000"),
        "model.heads": ("1", "2", "3"),
        "model.vocabulary": ("257", "300", "5", "1000000000"),
        "model.architecture": ("gpt_neox", "llama", "gpt2", "opt", "mamba", "bert", "gptj", "x"),
        "model.init": ("paper", "library"),
        "model.dtype": ("float32", "float64", "bfloat16"),
        "model.dropout": ("own", "0", "0.1", "2"),
        "model.source": ("random", "nowhere", "./nowhere", "x.gguf"),
        "optimizer.name": ("sgd", "adam", "adamw", "rmsprop"),
        "optimizer.lr": ("0.1", "1e-3", "1e30", "0", "nan"),
        "optimizer.momentum": ("0", "0.9", "1"),
        "optimizer.betas": ("0.9", "1"),
        "schedule.kind": ("cyclic", "shuffled", "spiral", "nowhere.py:Order"),
        "schedule.keep_first": ("true", "false", "maybe"),
        "control": ("none", "shuffled", "cyclic", "spiral"),
        "intervene": ("freeze", "mask", "edit", "project", "gradients", "nowhere.py:X"),
        "record": ("attention_patterns", "gradients", "freeze"),
        "sketch": ("1", "127", "5000"),
        "gradients.every": ("step", "epoch", "3 steps", "0 steps", "often"),
        "weight_deltas.every": ("step", "episode", "epoch", "7 steps"),
        "checkpoints.every": ("epoch", "7 episodes"),
        "device": ("cpu", "cuda", "meta", "nowhere"),
        "threads": ("0", "1", "-1"),
    }
    for i in range(rounds):
        chosen = {n: rng.choice(values[n]) for n in rng.sample(list(values), rng.choice((1, 2, 4)))}
        words = [f"--{name}={value}" for name, value in chosen.items()]
        said = io.StringIO()
        code: object = 0
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                main(["train", *TINY, "--out", str(folder / f"run-{i}"), *words])
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            yield False, f"{type(error).__name__}: {' '.join(words)}"
            continue
        last = said.getvalue().splitlines()[-1:]
        well = code == 0 or (last and last[0].startswith("error: "))
        if code == 2 and (folder / f"run-{i}").exists():
            well = False
        yield bool(well), f"exit code {code}" + ("" if well else f": {' '.join(words)}")


SECTIONS = {f.__name__: f for f in (kills, readers, trainers, disk, corruption, settings)}


def stress(asked: Stress) -> int:
    """Do the sections and tell the totals; the number of cases that went badly."""
    bad = 0
    for name in asked.section or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="recovery_probe-stress-") as folder:
            rng = random.Random(f"{asked.seed} {name}")
            outcomes = list(SECTIONS[name](asked.rounds, rng, Path(folder)))
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
