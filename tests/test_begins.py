"""Runs that begin with another run's checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cut, tiny

import recovery_probe as rp
from recovery_probe.train.plan import Begins, Point

MOMENTUM = {"name": "sgd", "lr": 0.05, "momentum": 0.9}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A run whose optimizer remembers, with a checkpoint at every epoch."""
    out = tmp_path_factory.mktemp("origin") / "run"
    return rp.fit(tiny(epochs=3, optimizer=MOMENTUM, checkpoints={"every": "epoch"}), out)


def on(run: rp.Run, order: list[int], path: Path, after: int = 1, **changes: Any) -> Point:
    """A run of these documents, from the end of an epoch."""
    T = run.config.documents.count
    listed = {"kind": "listed", "documents": order, "every": T}
    settings = rp.changed(run.config, epochs=-(-len(order) // T), schedule=listed, **changes)
    return Point(path, settings, begins=Begins(run.path, after * T))


def test_the_same_order_is_the_run_itself(origin: rp.Run, tmp_path: Path) -> None:
    T = origin.config.documents.count
    run = rp.fit([on(origin, [*range(T)] * 2, tmp_path / "on")])
    assert np.array_equal(run.losses.values, origin.losses.values[T:])
    assert np.array_equal(run.train_loss.values, origin.train_loss.values[T * run.config.steps :])
    assert run.provenance["begins"]["episodes_done"] == T


def test_another_order_is_another_run(origin: rp.Run, tmp_path: Path) -> None:
    T = origin.config.documents.count
    run = rp.fit([on(origin, [*range(T)][::-1], tmp_path / "back")])
    assert np.array_equal(run.losses.values[0], origin.losses.values[T])
    assert list(run.schedule.values) == [*range(T)][::-1]
    assert not np.array_equal(run.losses.values[1], origin.losses.values[T + 1])


def test_what_the_optimizer_remembers_comes_along_or_not(origin: rp.Run, tmp_path: Path) -> None:
    order = [*range(origin.config.documents.count)]
    kept = rp.fit([on(origin, order, tmp_path / "kept")])
    reset = rp.fit([on(origin, order, tmp_path / "reset", optimizer={"reset": "episode"})])
    assert kept.train_loss.values[0] == reset.train_loss.values[0]  # before any step
    assert kept.train_loss.values[1] != reset.train_loss.values[1]


def test_more_documents_come_behind(origin: rp.Run, tmp_path: Path) -> None:
    T = origin.config.documents.count
    more = on(origin, [*range(T, 2 * T)], tmp_path / "new", documents={"count": 2 * T})
    run = rp.fit([more])
    assert list(run.record.name.values[:T]) == list(origin.record.name.values[:T])
    assert np.allclose(run.losses.values[0, :T], origin.losses.values[T, :T], rtol=1e-5)
    assert np.isfinite(run.losses.values).all()


def test_it_goes_on_where_it_was_stopped(origin: rp.Run, tmp_path: Path) -> None:
    T = origin.config.documents.count
    point = on(origin, [*range(T)] * 2, tmp_path / "on", recorders=["checkpoints"])
    whole = rp.fit([point])
    for kept in (0, 1):
        killed = cut(whole, tmp_path / f"killed-{kept}", T + 1)
        if not kept:
            shutil.rmtree(killed.path / "checkpoints")
        again = rp.fit([replace(point, path=killed.path)], resume=True)
        assert np.array_equal(again.losses.values, whole.losses.values)
        assert np.array_equal(again.train_loss.values, whole.train_loss.values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"depth": 1}}, "differ in model.depth"),
        ({"optimizer": {"lr": 0.01}}, "differ in optimizer.lr"),
        ({"optimizer": {"decay": "cosine"}}, "optimizer.decay"),
        ({"steps": 4}, "differ in steps"),
        ({"documents": {"count": 3, "tokens": 7}}, "documents.tokens"),
    ],
)
def test_what_cannot_begin_there_is_refused(
    origin: rp.Run, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    order = [*range(changes.get("documents", {}).get("count", origin.config.documents.count))]
    settings = rp.changed(origin.config, epochs=1, schedule={"kind": "listed", "documents": order})
    begins = Begins(origin.path, origin.checkpoints[1])
    with pytest.raises(rp.InputError, match=words):
        rp.fit([Point(tmp_path / "x", rp.changed(settings, **changes), begins=begins)])
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_that_is_not_there(origin: rp.Run, tmp_path: Path) -> None:
    point = on(origin, [0, 1], tmp_path / "x")
    with pytest.raises(rp.InputError, match="no checkpoint after 1"):
        rp.fit([replace(point, begins=Begins(origin.path, 1))])


def test_an_origin_that_has_changed_or_gone(origin: rp.Run, tmp_path: Path) -> None:
    shutil.copytree(origin.path, tmp_path / "origin")
    moved = rp.open_run(tmp_path / "origin")
    T = origin.config.documents.count
    point = on(moved, [*range(T)] * 2, tmp_path / "on", recorders=[])
    killed = cut(rp.fit([point]), tmp_path / "killed", 2)
    with pytest.raises(rp.InputError, match=r"holds another run .*begins"):
        rp.fit([replace(point, path=killed.path, begins=Begins(origin.path, T))], resume=True)
    shutil.rmtree(moved.path)
    with pytest.raises(rp.InputError, match=r"began with a checkpoint of .*not there"):
        killed.resume()


def test_listed_orders_are_as_long_as_they_say(tmp_path: Path) -> None:
    listed = {"kind": "listed", "documents": [0, 1, 1]}
    with pytest.raises(rp.InputError, match="lists 3 episodes, 1 epochs of 4, and epochs = 2"):
        rp.fit(tiny(epochs=2, documents={"count": 4}, schedule=listed), tmp_path / "x")
    run = rp.fit(tiny(epochs=1, documents={"count": 4}, schedule=listed), tmp_path / "y")
    assert list(run.schedule.values) == [0, 1, 1]
