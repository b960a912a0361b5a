"""Subspaces of few vectors: held against numpy's SVD and QR, and put on linear documents, where the
answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import recovery_probe as rp
from recovery_probe import stats, subspaces
from recovery_probe.experiments import scores

SHAPES = {"a.weight": (3, 4), "b.bias": (20,), "c": (2, 2, 5)}
WIDTH = 52


def vectors(values: Any) -> dict[str, Tensor]:
    """(n, 52) numbers, spread over three parameters."""
    found, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        part = np.asarray(values)[:, start : start + size]
        found[name] = torch.tensor(part).reshape(-1, *shape)
        start += size
    return found


def flat(found: Any) -> np.ndarray:
    """The opposite."""
    return np.concatenate([found[n].reshape(len(found[n]), -1).numpy() for n in SHAPES], axis=1)


def drawn(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, WIDTH)) * rng.uniform(0.1, 3, size=(n, 1)) + rng.normal(size=WIDTH)


def onto(rows: np.ndarray) -> np.ndarray:
    """The projection onto the span of rows."""
    q = np.linalg.qr(rows.T)[0]
    return q @ q.T


def energy(rows: np.ndarray, of: np.ndarray) -> float:
    return float(((of @ onto(rows)) ** 2).sum() / (of**2).sum())


def test_principal_directions_are_those_of_the_svd() -> None:
    values = drawn(9)
    found = flat(subspaces.principal(vectors(values), 4))
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    expected = np.linalg.svd(unit)[2][:4]
    assert np.allclose(found @ found.T, np.eye(4))
    assert np.allclose(np.abs(np.sum(found * expected, axis=1)), 1)  # each one, in this order


def test_what_is_worked_out_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspaces, "PIECE", 3)  # which divides no parameter but one
    values, others, weights = drawn(5), drawn(4, seed=1), drawn(5, seed=2)[:2, :5]
    assert np.allclose(subspaces.gram(vectors(values), vectors(others)), values @ others.T)
    assert np.allclose(flat(subspaces.combined(vectors(values), weights)), weights @ values)
    share = subspaces.removed(vectors(others), vectors(values))
    assert share == pytest.approx(energy(others, values))


def test_vectors_of_zero_do_not_count_and_dependent_ones_count_once() -> None:
    values = drawn(4)
    values[1], values[3] = 0, 2 * values[0]
    found = flat(subspaces.principal(vectors(values), 2))
    assert np.allclose(onto(found), onto(values[[0, 2]]))
    with pytest.raises(rp.InputError, match="4 vectors span 2 directions, and 3 were asked for"):
        subspaces.principal(vectors(values), 3)


def test_removed_energy_of_directions_that_are_not_orthonormal() -> None:
    values, directions = drawn(9), drawn(3, seed=1)
    share = subspaces.removed(vectors(directions), vectors(values))
    assert share == pytest.approx(energy(directions, values))


@pytest.mark.parametrize("share", [1e-4, 0.03, 0.3, 0.77, 0.999])
@pytest.mark.parametrize("alike", [False, True])
def test_a_placebo_takes_as_much_in_the_span(share: float, alike: bool) -> None:
    values = np.linalg.qr(drawn(WIDTH))[0][:9] if alike else drawn(9)
    found = flat(subspaces.placebo(vectors(values), share, np.random.default_rng(3)))
    assert np.allclose(found @ found.T, np.eye(len(found)), atol=1e-6)
    assert energy(found, values) == pytest.approx(share, rel=1e-6)
    outside = np.linalg.norm(found - found @ onto(values), axis=1)
    assert np.allclose(outside[:-1], 0, atol=1e-7)  # all but the last are in it
    again = flat(subspaces.placebo(vectors(values), share, np.random.default_rng(3)))
    other = flat(subspaces.placebo(vectors(values), share, np.random.default_rng(4)))
    assert np.array_equal(found, again)
    assert not np.allclose(onto(found), onto(other), atol=1e-3)


def test_placebos_have_no_favourite_direction() -> None:
    """Of vectors that are all alike orthogonal, any one's own direction is taken a share of the
    time that is the share of the energy."""
    values = np.eye(WIDTH)[:6]
    taken = np.mean(
        [
            np.diag(onto(flat(subspaces.placebo(vectors(values), 0.5, np.random.default_rng(i)))))
            for i in range(100)
        ],
        axis=0,
    )
    assert np.allclose(taken[:6], 0.5, atol=0.1)
    assert np.allclose(taken[6:], 0, atol=0.02)


def test_isotropic_directions_take_nothing() -> None:
    large = {"w": torch.randn(5, 200, 300, generator=torch.Generator().manual_seed(0))}
    directions = subspaces.isotropic(large, 3, np.random.default_rng(0))
    assert directions["w"].shape == (3, 200, 300)
    assert 0 < subspaces.removed(directions, large) < 3e-4


# --- linear documents: X_k = √(1-s) R_k + √s C, plain descent, as simulations/linear_documents


class Linear:
    """Twelve documents of six equations, and 150 held-out ones, s = .5."""

    T, q, steps, lr = 12, 6, 10, 0.3

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        d = 20 * self.T
        self.common = rng.normal(size=(self.q, d))
        own = rng.normal(size=(self.T + 150, self.q, d))
        self.X = np.sqrt(self.q / d) * (np.sqrt(0.5) * own + np.sqrt(0.5) * self.common)
        self.y = rng.normal(size=(self.T + 150, self.q))
        self.w = np.zeros(d)
        for _ in range(4):
            self.early = self.w  # an epoch before the end
            self.w = self.train([*range(self.T)])[0]

    def gradients(self, w: np.ndarray) -> np.ndarray:
        return np.einsum("kqd,kq->kd", self.X, self.X @ w - self.y) / self.q

    def train(
        self, order: list[int], without: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights at the end, losses after each episode, the update of each."""
        w, rows, moved = self.w, [], []
        losses = [((self.X[: self.T] @ w - self.y[: self.T]) ** 2 / 2).mean(axis=1)]
        for k in order:
            before = w
            for _ in range(self.steps):
                update = -self.lr * self.X[k].T @ (self.X[k] @ w - self.y[k]) / self.q
                if without is not None:
                    rest = update - update @ onto(without)
                    update = rest * np.linalg.norm(update) / np.linalg.norm(rest)
                w = w + update
            moved.append(w - before)
            losses.append(((self.X[: self.T] @ w - self.y[: self.T]) ** 2 / 2).mean(axis=1))
        rows = np.array(losses)
        return w, rows, np.array(moved)

    def score(self, without: Any = None) -> float:
        order = [*range(self.T)] * 2
        taken = None if without is None else without["w"].numpy()
        curves, _ = stats.by_age(self.train(order, taken)[1], np.array(order), self.T)
        return float(scores.of_curves(curves[:1], np.arange(self.T)[None])[0, 0])


@pytest.mark.parametrize("held_out", [True, False])
def test_recovery_of_linear_documents_needs_what_they_share(held_out: bool) -> None:
    """The directions that gradients share, of held-out documents or an epoch before, are those of
    the common equations; without them nothing comes back. A placebo that takes as much leaves it,
    and so do random directions of all weights."""
    linear = Linear(1)
    q, T = linear.q, linear.T
    of = linear.gradients(linear.w)[T:] if held_out else linear.gradients(linear.early)
    shared = subspaces.principal({"w": torch.tensor(of)}, q)
    inside = (shared["w"].numpy() @ onto(linear.common)) ** 2
    assert inside.sum() / q > 0.93
    updates = {"w": torch.tensor(linear.train([*range(T)])[2])}
    share = subspaces.removed(shared, updates)
    assert 0.4 < share < 0.6
    full, rng = linear.score(), np.random.default_rng(0)
    assert full > 0.5
    assert linear.score(shared) < 0.05
    placebos = [subspaces.placebo(updates, share, rng) for _ in range(4)]
    assert all(abs(subspaces.removed(p, updates) - share) < 1e-9 for p in placebos)
    assert np.mean([linear.score(p) for p in placebos]) > 0.6 * full
    assert linear.score(subspaces.isotropic(updates, q, rng)) == pytest.approx(full, abs=0.05)
