"""Whether the loss follows the state: exactly so on plain least squares."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from recovery_probe_analyses.state_return import StateReturn

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.simulations.linear_documents import LinearDocuments

SHAPE: dict[str, Any] = {"documents": 20, "held_out": 2, "epochs": 3, "steps": 10, "seed": 1}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    return rp.simulate(LinearDocuments(**SHAPE), tmp_path_factory.mktemp("linear"))


def test_least_squares_in_closed_form_are_vectors_of_weights(linear: rp.Run) -> None:
    """The recorded numbers, from products of equations, against weights that are stepped."""
    problem = LinearDocuments(**SHAPE).problem(1)
    found = linear.recorder("state_return").load()
    assert found.episodes_done.values.tolist() == list(range(1, 61))
    w, kept, q = problem.start.copy(), {}, problem.q
    for episode, k in enumerate(linear.schedule.values):
        for _ in range(SHAPE["steps"]):
            w -= problem.lr / q * problem.X[k].T @ (problem.X[k] @ w - problem.y[k])
        kept[int(k)] = w.copy()
        for document in (0, 7, 19, 21):
            row = found.sel(episodes_done=episode + 1, document=document)
            if document not in kept:
                assert np.isnan([row[name] for name in found.data_vars]).all()
                continue
            X, y, away = problem.X[document], problem.y[document], w - kept[document]
            errors = X @ kept[document] - y
            loss = ((X @ w - y) ** 2 - errors**2).mean() / 2
            expected = {
                "curvature": ((X @ away) ** 2).sum() / q,
                "slope": (X.T @ errors / q) @ away,
                "linear": loss,
                "distance": away @ away,
            }
            for name, value in expected.items():
                assert row[name].item() == pytest.approx(value, abs=1e-10)


def test_there_the_expansion_is_exact(linear: rp.Run) -> None:
    dataset = StateReturn()(linear, *linear.controls)
    for run in (0, 1):
        part = dataset.isel(run=run)
        for exact in ("expansion", "linear"):
            r2 = estimate.get(part, "r2", reading=exact)
            assert (r2.value, r2.low, r2.high) == pytest.approx((1, 1, 1), abs=1e-9)
        assert part.r2.sel(reading="state") > 0.98, "half of it, but for the gradient at w_j"
        assert part.r2.sel(reading="age") < 0.8
    cyclic, shuffled = dataset.isel(run=0), dataset.isel(run=1)
    assert cyclic.score.sel(quantity="curvature") > 0.3
    assert shuffled.score.sel(quantity="curvature") < 0.15
    assert cyclic.more_than_age_low.sel(part="both") > 0.1


def test_without_a_state_it_foretells_nothing(linear: rp.Run, tmp_path: Path) -> None:
    """The same run, with numbers drawn in place of the states."""
    shutil.copytree(linear.path, tmp_path / "run")
    group = zarr.open_group(tmp_path / "run" / "record.zarr" / "state_return", mode="r+")
    rng = np.random.default_rng(0)
    for name in ("curvature", "slope"):
        values: Any = group[name]
        values[:] = np.where(np.isnan(values[:]), np.nan, rng.gamma(2, size=values.shape))
    found = StateReturn()(rp.open_run(tmp_path / "run")).isel(run=0)
    assert found.r2.sel(reading="state") < 0.1
    assert abs(found.more_than_age.sel(part="both")) < 0.1
    assert found.r2.sel(reading="expansion") < 0


def test_errors_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    change, state = rng.normal(size=(2, 5, 4))
    found = stats.left_out_errors(change, state)
    for j in range(5):
        y, q = (np.delete(each, j, axis=0) for each in (change, state))
        ages = np.tile(np.arange(4), 4)
        design = np.column_stack([np.eye(4)[ages], q.ravel()])
        fit, *_ = np.linalg.lstsq(design, y.ravel(), rcond=None)
        both = fit[:4] + fit[4] * state[j]
        through, *_ = np.linalg.lstsq(q.reshape(-1, 1), y.ravel(), rcond=None)
        foretold = [y.mean(), y.mean(axis=0), through * state[j], both]
        expected = [((change[j] - each) ** 2).sum() for each in foretold]
        np.testing.assert_allclose(found[:, j], expected)
    assert np.isnan(stats.left_out_errors(change[:2], state[:2])).all()


def test_an_age_only_loss_has_no_more_than_age() -> None:
    """A loss of age alone, beside states that are a document's own: age tells all."""
    rng = np.random.default_rng(3)
    change = np.tile(np.arange(8.0), (10, 1)) + 0.01 * rng.normal(size=(10, 8))
    state = np.tile(np.arange(8.0), (10, 1)) * rng.gamma(3, size=(10, 1))
    usual, age, alone, both = stats.left_out_errors(change, state).sum(axis=1)
    assert age < 1e-4 * usual
    assert both < 1.3 * age
    assert alone > 0.1 * usual
