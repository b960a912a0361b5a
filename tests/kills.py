"""Runs that are killed and go on: what the tests do a dozen times and `stress.py` hundreds."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from safetensors.torch import load_file

import recovery_probe as rp
from recovery_probe.testing import toy_settings as tiny

# What a training imports, its networks' code too: nine of ten seconds of a tiny one.
LIBRARIES = [
    "recovery_probe.train.fitting",
    "torch._dynamo",
    "transformer_lens.model_bridge.sources.transformers",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
]
ALL = ["token_losses", "residual_stream", "gradients", "weight_deltas", "attention_patterns"]


def strength(tensor: Any, *, hook: Any) -> Any:
    """A custom hook."""
    return tensor.norm()


def with_hook() -> dict[str, Any]:
    return {"hooks": [("strength", "blocks.*.hook_resid_post", strength)]}


# Name -> settings, and what `fit` gets beside.
VARIANTS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "descent, every recorder, a hook": (
        {"recorders": [*ALL, "document_gradients", "checkpoints"]},
        with_hook,
    ),
    "momentum, shuffled": (
        {"optimizer": {"lr": 0.02, "momentum": 0.9}, "schedule": {"kind": "shuffled"}},
        dict,
    ),
    "adam, mask": ({"optimizer": {"name": "adam"}, "interventions": ["mask"]}, dict),
    "adam reset, dropout": (
        {
            "optimizer": {"name": "adam", "reset": "episode"},
            "model": {"architecture": "llama", "dropout": 0.2},
        },
        dict,
    ),
    "updates by the epoch, few checkpoints": (
        {
            "weight_deltas": {"every": "epoch"},
            "recorders": ["weight_deltas", "gradients", "checkpoints"],
            "checkpoints": {"every": "4 episodes", "keep": 2},
        },
        dict,
    ),
    "no checkpoints": ({"recorders": ["token_losses"]}, dict),
}


@dataclass(frozen=True)
class Kill:
    """SIGKILL some seconds after the run's directory is there, or at the n-th call of `os.replace`
    (which puts every file of the record and every checkpoint in place), or the n-th of those for a
    checkpoint: before it, or right after."""

    seconds: float = 0.0
    call: int = 0
    of_checkpoints: bool = False
    after: bool = False


def fit(variant: str, path: str, resume: bool, kill: Kill | None, count: str | None) -> None:
    """In a process of its own: train a variant, and be killed; or count calls of `os.replace`."""
    torch.set_num_threads(1)
    settings, given = VARIANTS[variant]
    calls = [0, 0]
    if (kill and kill.call) or count:
        _count(kill or Kill(), calls)
    rp.fit(tiny(**settings), path, resume=resume, **given())
    if count:
        Path(count).write_text(json.dumps(calls))


def _count(kill: Kill, calls: list[int]) -> None:
    """Count the calls of `os.replace`, all and those for a checkpoint, and kill this process at one
    of them."""
    replace = os.replace

    def counted(source: Any, target: Any, **kwargs: Any) -> None:
        of_checkpoint = "checkpoints/" in os.fspath(target)
        calls[0] += 1
        calls[1] += of_checkpoint
        mine = kill.call == calls[kill.of_checkpoints] and of_checkpoint >= kill.of_checkpoints
        if mine and not kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **kwargs)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted


def process(
    variant: str, path: Path, resume: bool, kill: Kill | None = None, count: Path | None = None
) -> int | None:
    """Train in another process, which begins with the libraries loaded, and return how it ended;
    with a `kill`, -9 unless it ended before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    words = (variant, str(path), resume, kill, count and str(count))
    child = context.Process(target=fit, args=words)
    child.start()
    if kill and not kill.call:
        while not (path / "lock.json").exists() and child.is_alive():
            time.sleep(0.002)
        time.sleep(kill.seconds)
        child.kill()
    child.join(300)
    return child.exitcode


@dataclass(frozen=True)
class Whole:
    """An undisturbed run of a variant, the seconds it took from its first file on, and how often
    files were put in place: all, and checkpoints."""

    run: rp.Run
    seconds: float
    calls: tuple[int, int]


def undisturbed(variant: str, path: Path) -> Whole:
    """Train a variant whole."""
    count = path.with_suffix(".count")
    assert process(variant, path, resume=False, count=count) == 0
    run = rp.open_run(path)
    calls = json.loads(count.read_text())
    return Whole(run, run.provenance["seconds"], (calls[0], calls[1]))


def kills(rng: random.Random, whole: Whole) -> Iterator[Kill]:
    """Random moments: any, in the first second, when any file or a checkpoint is put in place."""
    while True:
        kind = rng.choice(["any", "early", "file", "checkpoint"])
        after = rng.random() < 0.5
        if kind in ("any", "early"):
            most = whole.seconds if kind == "any" else min(1.0, whole.seconds)
            yield Kill(seconds=rng.uniform(0, most))
        elif kind == "checkpoint" and whole.calls[1]:
            yield Kill(call=rng.randint(1, whole.calls[1]), of_checkpoints=True, after=after)
        else:
            yield Kill(call=rng.randint(1, whole.calls[0]), after=after)


def differences(run: rp.Run, whole: rp.Run) -> list[str]:
    """What two runs differ in, bit for bit: arrays, their attributes, checkpoints; not in times."""
    found = []
    one, other = (
        dict(zarr.open_group(r.path / "record.zarr", mode="r").members(max_depth=None))
        for r in (run, whole)
    )
    found += [f"only in one: {name}" for name in one.keys() ^ other.keys()]
    for name in sorted(one.keys() & other.keys()):
        a, b = one[name], other[name]
        if dict(a.attrs) != dict(b.attrs):
            found.append(f"attributes of {name}")
        if isinstance(a, zarr.Array) and not _same(np.asarray(a[...]), np.asarray(b[...])):
            found.append(name)
    if run.checkpoints != whole.checkpoints:
        return [*found, f"checkpoints {run.checkpoints} and {whole.checkpoints}"]
    for done in whole.checkpoints:
        folders = [r.path / "checkpoints" / f"episodes-{done:05d}" for r in (run, whole)]
        names = [sorted(f.name for f in folder.iterdir()) for folder in folders]
        if names[0] != names[1]:
            found.append(f"files of checkpoint {done}: {names}")
        for name in names[1]:
            file, same = folders[0] / name, folders[1] / name
            if name.endswith(".safetensors"):
                tensors, theirs = load_file(file), load_file(same)
                alike = tensors.keys() == theirs.keys()
                if not (alike and all(torch.equal(tensors[n], theirs[n]) for n in theirs)):
                    found.append(f"{name} of checkpoint {done}")
            elif file.read_bytes() != same.read_bytes():
                found.append(f"{name} of checkpoint {done}")
    return found


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.dtype.kind == "f":
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a.dtype == b.dtype and np.array_equal(a, b)


def killed_and_resumed(variant: str, path: Path, whole: Whole, first: Kill, *more: Kill) -> str:
    """Kill a run, resume it, kill that too as often as is said, resume it to the end: what it
    differs in from the whole one, or an empty text."""
    shutil.rmtree(path, ignore_errors=True)
    for kill in (first, *more):
        code = process(variant, path, resume=True, kill=kill)
        print(f"{variant}: {kill}: ended with {code}, {_got(path)}", flush=True)
    code = process(variant, path, resume=True)
    if code != 0:
        return f"ended with {code}"
    run = rp.open_run(path)
    run.check()
    ended = [] if run.status == "complete" else [run.status]
    return "; ".join([*differences(run, whole.run), *ended])


def _got(path: Path) -> str:
    try:
        run = rp.open_run(path)
    except rp.InputError:
        return "no run there"
    return f"{run.status} after {run.episodes_done} episodes, checkpoints {run.checkpoints}"
