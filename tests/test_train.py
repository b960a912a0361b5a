"""The loop, against a plain Hugging Face loop that knows nothing of TransformerLens."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from conftest import ALL, tiny
from networks import SHAPES, local_model, plain_loop
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.record.writer import Writer

OPTIMIZERS = [
    {"name": "sgd", "lr": 0.05},
    {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.01},
    {"name": "sgd", "lr": 0.02, "momentum": 0.9, "reset": "episode"},
    {"name": "sgd", "lr": 0.02, "momentum": 0.9, "nesterov": True, "decay": "cosine"},
    {"name": "sgd", "lr": 0.1, "per": "episode"},
    {"name": "sgd", "lr": 0.02, "momentum": 0.9, "dampening": 0.5, "reset": "epoch"},
    {"name": "adam", "lr": 1e-3},
    {"name": "adam", "lr": 1e-3, "reset": "episode"},
    {"name": "adam", "lr": 3e-3, "reset": "epoch", "per": "episode", "decay": "cosine"},
    {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
]


@pytest.mark.parametrize("architecture", list(SHAPES))
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
def test_losses_equal_a_plain_loops(
    tmp_path: Path, architecture: str, optimizer: dict[str, object]
) -> None:
    folder = local_model(tmp_path / "model", architecture)
    # 500 tokens at most: some documents are shorter, so that padding is on trial too.
    documents = {"count": 3, "held_out": 2, "tokens": 200, "min_tokens": 2}
    settings = tiny(
        epochs=2, model={"source": str(folder)}, documents=documents, optimizer=optimizer
    )
    run = rp.fit(settings, tmp_path / "run")
    assert (run.record.length.values < 200).any()
    np.testing.assert_allclose(
        run.losses.values,
        plain_loop(folder, run),
        atol=1e-5,
        rtol=0,
    )
    # The prequential loss of an episode is the loss of its document one row earlier.
    first = run.train_loss.values[:: settings.steps]
    before = [run.losses.values[e, d] for e, d in enumerate(run.schedule.values)]
    np.testing.assert_allclose(first, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", [*SHAPES, "bloom", "qwen3", "falcon", "phi3"])
def test_saved_weights_give_a_plain_model_the_last_losses(
    tmp_path: Path, architecture: str
) -> None:
    wanted = {"architecture": architecture, "init": "library", "dropout": 0}
    run = rp.fit(tiny(model=wanted), tmp_path / "run")
    folder = run.path / "checkpoints" / f"episodes-{run.episodes_done:05d}"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.tensor(run.record.tokens.values)
    with torch.no_grad():
        losses = [model(input_ids=t[None], labels=t[None]).loss.item() for t in tokens]
    np.testing.assert_allclose(losses, run.losses.values[-1], atol=1e-5, rtol=0)
    again = rp.fit(tiny(epochs=1, model={"source": str(folder)}), tmp_path / "again")
    np.testing.assert_allclose(again.losses.values[0], run.losses.values[-1], atol=1e-5, rtol=0)


def test_same_seed_same_record_other_seed_other_record(tmp_path: Path) -> None:
    def record(name: str, **changes: object) -> xr.Dataset:
        # Dropout draws from torch's global generator.
        torch.manual_seed(hash(name) % 2**32)
        model = {"architecture": "llama", "dropout": 0.2}
        return rp.fit(tiny(model=model, recorders=ALL, **changes), tmp_path / name).record.load()

    one, same, other = record("one"), record("same"), record("other", seed=1)
    assert one.identical(same)
    assert not np.array_equal(one.losses, other.losses)
    assert list(one.digest.values) != list(other.digest.values)


def test_training_leaves_torchs_global_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    rp.fit(tiny(epochs=1), tmp_path / "run")
    assert torch.equal(torch.rand(4), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_runs_own_config_repeats_it(pair: rp.Run, tmp_path: Path) -> None:
    again = rp.fit(rp.open_run(pair.path).config, tmp_path / "again")
    assert np.array_equal(again.losses, pair.losses)


def test_control_differs_in_the_schedule_alone(pair: rp.Run) -> None:
    (control,) = pair.controls
    T, E = pair.config.documents.count, pair.config.epochs
    assert np.array_equal(control.record.tokens, pair.record.tokens)
    assert np.array_equal(control.losses[0], pair.losses[0])
    assert pair.schedule.values.tolist() == list(range(T)) * E
    epochs = control.schedule.values.reshape(E, T)
    assert all(sorted(e) == list(range(T)) for e in epochs.tolist())
    assert len({tuple(e) for e in epochs.tolist()}) > 1


def test_all_are_shuffled_unless_the_first_is_kept(tmp_path: Path) -> None:
    first = {}
    for keep_first in (False, True):
        settings = {"kind": "shuffled"} | ({"keep_first": True} if keep_first else {})
        run = rp.fit(tiny(schedule=settings, epochs=6, steps=1), tmp_path / str(keep_first))
        first[keep_first] = set(run.schedule.values[:: run.config.documents.count].tolist())
    assert first[True] == {0}
    assert len(first[False]) > 1


def test_each_seed_decides_its_own(tmp_path: Path) -> None:
    """Documents, weights and order are redrawn apart, and together by one number."""

    def made(**seed: int) -> rp.Training:
        return rp.Training.open(tiny(seed=seed, schedule={"kind": "shuffled"}, epochs=4))

    def same(a: rp.Training, b: rp.Training) -> tuple[bool, bool, bool]:
        return (
            a.documents.digests == b.documents.digests,
            all(torch.equal(p, b.model.parameters[n]) for n, p in a.model.parameters.items()),
            bool((a.timeline.schedule == b.timeline.schedule).all()),
        )

    plain = made()
    assert same(plain, made(documents=7)) == (False, True, True)
    assert same(plain, made(weights=7)) == (True, False, True)
    assert same(plain, made(order=7)) == (True, True, False)
    whole = rp.Training.open(tiny(seed=7, schedule={"kind": "shuffled"}, epochs=4))
    assert same(whole, made(documents=7, weights=7, order=7)) == (True, True, True)


@pytest.mark.parametrize(
    ("optimizer", "seen"),
    [
        ({"name": "sgd", "lr": 1e30}, "training loss was"),
        ({"name": "adam", "lr": 0.3}, "above its untrained"),
    ],
)
def test_divergence_stops_and_keeps_the_record(
    tmp_path: Path, optimizer: dict[str, object], seen: str
) -> None:
    out = tmp_path / "run"
    settings = tiny(optimizer=optimizer, model={"init": "library"})
    with pytest.raises(rp.Diverged, match=rf"episode \d+.*{seen}.*smaller"):
        rp.fit(settings, out)
    run = rp.open_run(out)
    assert run.status == "diverged"
    assert seen in run.provenance["message"]
    assert zarr.open_group(out / "record.zarr", mode="r").attrs["status"] == "diverged"
    counted = np.isfinite(run.losses.values).all(axis=1)
    assert counted[: run.episodes_done + 1].all()
    assert not counted[run.episodes_done + 1 :].any()
    assert "diverged" in repr(run)


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    rp.fit(tiny(epochs=1), out)
    with pytest.raises(rp.InputError, match="--overwrite"):
        rp.fit(tiny(epochs=1), out)
    assert rp.fit(tiny(epochs=1, seed=5), out, overwrite=True).config.seed.order == 5
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(rp.InputError, match="not a run"):
        rp.fit(tiny(epochs=1), mine, overwrite=True)
    assert os.listdir(mine) == ["thesis.tex"]


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(rp.InputError):
        rp.fit(tiny(documents={"count": 500}), tmp_path / "run")
    assert not os.listdir(tmp_path)


class Counting(np.ndarray):
    """Counts the numbers that are computed with."""

    seen = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        Counting.seen += sum(np.size(value) for value in inputs)
        plain = [np.asarray(v) if isinstance(v, Counting) else v for v in inputs]
        return getattr(ufunc, method)(*plain, **options)


def test_an_episode_costs_the_same_at_the_end_as_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed, by the epoch: calls of functions, numbers of losses that are computed
    with, and rows that progress and the guard are shown."""
    T, epochs = 4, 30
    parts: dict[str, Any] = {
        "documents": {"count": T, "held_out": 1},
        "model": {"depth": 1, "width": 16},
    }
    parts |= {"optimizer": {"lr": 1e-3}, "recorders": ["token_losses", "gradients"]}
    settings = tiny(**{"recorders": ALL, **parts}, epochs=epochs, steps=1)
    calls, numbers, rows = ([0] * epochs for _ in range(3))
    epoch = 0
    commit, of = Writer.commit, rp.Training._of.__func__

    def count(frame: Any, event: str, argument: Any) -> None:
        calls[epoch] += event == "call"

    def committed(self: Writer, row: int, *given: Any) -> None:
        nonlocal epoch
        commit(self, row, *given)
        if row % T == 0 and row:
            numbers[epoch], Counting.seen = Counting.seen, 0
            epoch = min(epoch + 1, epochs - 1)

    def counting(cls: Any, *given: Any) -> rp.Training:
        training = of(cls, *given)
        training.rows = training.rows.view(Counting)
        return training

    def watched(losses: Any, schedule: Any) -> float:
        rows[epoch] += len(losses)
        return recovery(losses, schedule)

    recovery = stats.recovery_so_far
    monkeypatch.setattr(stats, "recovery_so_far", watched)
    monkeypatch.setattr(Writer, "commit", committed)
    monkeypatch.setattr(rp.Training, "_of", classmethod(counting))
    sys.setprofile(count)
    try:
        rp.fit(settings, tmp_path / "run")
    finally:
        sys.setprofile(None)
    early, late = slice(6, 14), slice(-10, -2)
    assert min(calls[early]) > 1000
    assert np.median(calls[late]) < 1.03 * np.median(calls[early])
    assert numbers[10] > 0
    assert numbers[late] == numbers[early]
    assert rows[late] == rows[early]
