"""Kernels of cycles and maps: planted structure is found, chance is called chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recovery_probe import stats
from recovery_probe.stats import coherence, components, geometry, stripe

T, EPOCHS, WIDTH = 10, 8, 30


def updates_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(E·T, d) updates without anything that epochs share."""
    if kind == "random walk":
        return rng.normal(size=(EPOCHS * T, WIDTH))
    if kind == "white noise":
        return np.diff(rng.normal(size=(EPOCHS * T + 1, WIDTH)), axis=0)
    own = rng.normal(size=(T, WIDTH))  # each document's update, in a new order every epoch
    shrink = 0.9 ** np.arange(EPOCHS)
    orders = [shrink[e] * own[rng.permutation(T)] for e in range(EPOCHS)]
    return np.concatenate(orders) + 0.3 * rng.normal(size=(EPOCHS * T, WIDTH))


def helix(rng: np.random.Generator, turns: int = 1, noise: float = 0.05) -> np.ndarray:
    """(E·T, d) updates of a helix that tightens, in random directions, with noise."""
    t = np.arange(EPOCHS * T + 1)
    radius = 0.85 ** (t / T)
    angle = 2 * np.pi * turns * t / T
    path = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.05 * t], axis=1)
    path = path @ rng.normal(size=(3, WIDTH)) + noise * rng.normal(size=(len(t), WIDTH))
    return np.diff(path, axis=0)


@pytest.mark.parametrize("kind", ["random walk", "white noise", "shuffled"])
def test_chance_gives_uniform_p_values(kind: str) -> None:
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        moved = updates_of(kind, rng)
        found = coherence(moved, T, 99, rng)
        null = [
            stripe(stats.episode_residuals(moved[o], T)[0], T)
            for o in stats.rotations(T, EPOCHS, 99, rng)
        ]
        observed = stripe(stats.episode_residuals(moved, T)[0], T)
        p.append(
            [found[f"{name}_p"] for name in ("period_share", "cycle_share", "order")]
            + [float(stats.permutation_p(observed, np.array(null)))]
            + [geometry(moved, T)["turns_p"]]
        )
    rates = (np.array(p) <= 0.05).mean(axis=0)
    assert ((rates >= 0.02) & (rates <= 0.08)).all(), rates


def mean_stripe(cosine: np.ndarray, documents: int) -> float:
    """Over all pairs, one at a time: whole cycles apart minus the others beyond half a cycle."""
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for i, j in itertools.combinations(range(len(cosine)), 2):
        if j - i > documents // 2:
            cosines[(j - i) % documents == 0].append(cosine[i, j])
    return float(np.mean(cosines[True]) - np.mean(cosines[False]))


def residual_map(documents: int, epochs: int) -> np.ndarray:
    """The matrix from all updates to residuals: weights minus their mean over a cycle."""
    total, half = epochs * documents, documents // 2
    position = np.tri(total + 1, total, -1)
    rows = []
    for t in range(half, total + 1 - half):
        window = position[t - half : t + half + 1]
        even = documents % 2 == 0
        mean = np.trapezoid(window, axis=0) / documents if even else window.mean(axis=0)
        rows.append(position[t] - mean)
    return np.array(rows)


def loop_map(documents: int, epochs: int) -> np.ndarray:
    """The matrix from all updates to each epoch's loop: without its straight drift and mean."""
    position = np.tri(epochs * documents).reshape(epochs, documents, -1)
    share = np.linspace(0, 1, documents)[:, None]
    line = (1 - share) * position[:, :1] + share * position[:, -1:]
    loops = position - line
    return (loops - loops.mean(axis=1, keepdims=True)).reshape(epochs * documents, -1)


@pytest.mark.parametrize(("documents", "epochs"), [(4, 3), (5, 3), (3, 2), (7, 4), (2, 5)])
@pytest.mark.parametrize("width", [3, 50])
def test_p_values_are_those_of_the_whole_maps(documents: int, epochs: int, width: int) -> None:
    """The definitions, by products of whole matrices, one rotation after another."""
    rng = np.random.default_rng(documents * epochs * width)
    moved = rng.normal(size=(epochs * documents, width))
    vectors = stats.compact(moved)
    gram = moved @ moved.T
    np.testing.assert_allclose(vectors @ vectors.T, gram, atol=1e-10)
    residual, loop = residual_map(documents, epochs), loop_map(documents, epochs)
    orders = stats.rotations(documents, epochs, 49, np.random.default_rng(3))

    if documents > 2:  # of two, every pair beyond half a cycle is whole cycles apart
        expected = [
            mean_stripe(stats.cosines(residual @ gram[np.ix_(o, o)] @ residual.T), documents)
            for o in orders
        ]
        found = [
            stripe(stats.episode_residuals(vectors[o], documents)[0], documents) for o in orders
        ]
        np.testing.assert_allclose(found, expected, atol=1e-10)

    loops = loop @ gram @ loop.T
    angle = 2 * np.pi * np.arange(len(moved)) / documents
    wave = np.exp(1j * angle) * np.sqrt(2 / len(moved))
    values, directions = np.linalg.eigh(loops)
    plane = directions[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(0))
    turn = np.arctan2(plane[:, 1], plane[:, 0])

    def statistics(order: np.ndarray) -> list[float]:
        turned = loops[np.ix_(order, order)]
        blocks = turned.reshape(epochs, documents, epochs, documents)
        period = (wave.conj() @ turned @ wave).real
        cycle = np.einsum("epfp->", blocks) / epochs
        ordered = abs(stats.circular_correlation(turn[order], angle))
        return [period / np.trace(loops), cycle / np.trace(loops), ordered]

    if documents > 2:  # two make a line, and no loop
        observed = np.array(statistics(np.arange(len(moved))))
        p = stats.permutation_p(observed, np.array([statistics(o) for o in orders]))
        found = coherence(vectors, documents, 49, np.random.default_rng(3))
        names = ("period_share", "cycle_share", "order")
        np.testing.assert_allclose([found[n] for n in names], observed, atol=1e-10)
        tested = 3 if documents > 3 else 2  # of three, two places of a loop tie
        np.testing.assert_allclose([found[f"{n}_p"] for n in names][:tested], p[:tested])
    else:
        assert np.isnan(coherence(vectors, 2, 9, rng)["cycle_share"])


def test_a_planted_helix_is_found() -> None:
    rng = np.random.default_rng(0)
    moved = helix(rng)
    found = coherence(moved, T, 199, rng) | geometry(moved, T)
    assert found["period_share"] > 0.8
    assert found["order"] > 0.95
    assert found["turns"] == pytest.approx(1, abs=0.02)
    assert found["tightening"] == pytest.approx(np.log(0.85), abs=0.03)
    assert all(found[f"{n}_p"] < 0.01 for n in ("period_share", "cycle_share", "order"))
    assert found["tightening_p"] < 0.01
    assert found["turns_p"] == 2.0 ** (1 - (EPOCHS - 1))  # the least that seven cycles can give
    # Twice round an epoch is another period, and not the documents' order along one turn.
    twice = helix(rng, turns=2)
    other = coherence(twice, T, 199, rng)
    assert other["period_share"] < 0.1 < 0.8 < other["cycle_share"]
    assert geometry(twice, T)["turns"] == pytest.approx(2, abs=0.05)


def test_stripes_are_found_at_whole_cycles() -> None:
    once = np.eye(T)[np.arange(35) % T]  # alike at whole cycles and nowhere else
    assert stripe(once, T) == 1
    rng = np.random.default_rng(0)
    moved = helix(rng)
    residual, _ = stats.episode_residuals(moved, T)
    found = stripe(residual, T)
    null = [
        stripe(stats.episode_residuals(moved[o], T)[0], T)
        for o in stats.rotations(T, EPOCHS, 199, rng)
    ]
    assert found > 0.8
    assert stats.permutation_p(found, np.array(null)) < 0.01
    curve = stats.by_lag(stats.cosines(residual @ residual.T))
    assert curve[T] > 0.95
    assert curve[T // 2] < -0.95
    assert np.isnan(stripe(residual * (np.arange(len(residual)) > 0)[:, None], T))


def test_the_interval_of_a_stripe_draws_places_of_the_cycle() -> None:
    documents, n = 4, 19
    cosine = np.random.default_rng(0).normal(size=(n, n))
    values: dict[bool, list[list[float]]] = {
        whole: [[] for _ in range(documents)] for whole in (True, False)
    }
    for i, j in itertools.combinations(range(n), 2):
        if j - i > documents // 2:
            values[(j - i) % documents == 0][i % documents].append(cosine[i, j])
    drawn = np.random.default_rng(1).integers(documents, size=(2000, documents))
    stripes = [
        np.mean(np.concatenate([values[True][p] for p in places]))
        - np.mean(np.concatenate([values[False][p] for p in places]))
        for places in drawn
    ]
    found = stats.stripe_interval(cosine, documents, np.random.default_rng(1))
    np.testing.assert_allclose(found, np.quantile(stripes, [0.025, 0.975]))


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    points = np.random.default_rng(0).normal(size=(40, 7)) * np.arange(7)
    found, share = components(points)
    centred = points - points.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :3] * s[:3]), atol=1e-8)
    np.testing.assert_allclose(share, s[:3] ** 2 / (s**2).sum())
    line, share = components(points[:, 1:2])
    np.testing.assert_allclose(np.abs(line[:, 0]), np.abs(centred[:, 1]))
    np.testing.assert_allclose(share, [1, 0, 0])


@pytest.mark.parametrize("documents", [4, 5])
def test_residuals_by_their_definition(documents: int) -> None:
    epochs, half = 3, documents // 2
    moved = np.random.default_rng(1).normal(size=(epochs * documents, 6))
    weights = np.vstack([np.zeros(6), moved.cumsum(axis=0)])
    found, rows = stats.episode_residuals(moved, documents)
    for row, residual in zip(rows, found, strict=True):
        window = weights[row - half : row + half + 1]
        mean = np.trapezoid(window, axis=0) / documents if documents % 2 == 0 else window.mean(0)
        np.testing.assert_allclose(residual, weights[row] - mean, atol=1e-12)
    assert rows[0] == half
    assert rows[-1] == epochs * documents - half


def test_circular_correlation_by_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 7, size=(2, 9))
    pairs = list(itertools.combinations(range(9), 2))
    top = sum(np.sin(a[i] - a[j]) * np.sin(b[i] - b[j]) for i, j in pairs)
    bottom = [sum(np.sin(x[i] - x[j]) ** 2 for i, j in pairs) for x in (a, b)]
    expected = top / np.sqrt(bottom[0] * bottom[1])
    assert stats.circular_correlation(a, b) == pytest.approx(expected)
    assert stats.circular_correlation(a, a + 1) == pytest.approx(1)
    assert stats.circular_correlation(a, -a) == pytest.approx(-1)


def test_cka_by_the_formula_of_unbiased_hsic() -> None:
    rng = np.random.default_rng(0)
    n = 8

    def hsic(k: np.ndarray, m: np.ndarray) -> float:  # Song et al. 2012, equation 5
        k, m = k * (1 - np.eye(n)), m * (1 - np.eye(n))
        one = np.ones(n)
        both = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return float((np.trace(k @ m) + both - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))

    x = rng.normal(size=(2, n, 20))
    grams = x @ x.transpose(0, 2, 1)
    found = stats.debiased_cka(stats.u_centred(grams[:, None]))[:, 0, :, 0]
    expected = hsic(*grams) / np.sqrt(hsic(grams[0], grams[0]) * hsic(grams[1], grams[1]))
    assert found[0, 1] == pytest.approx(expected)
    many = rng.normal(size=(200, n, 20))
    grams = many @ many.transpose(0, 2, 1)
    cka = stats.debiased_cka(stats.u_centred(grams[None]))[0, :, 0]
    assert abs(cka[np.triu_indices(200, 1)].mean()) < 0.01, "0 for what has nothing in common"


def test_cka_to_the_first_epoch_has_its_null() -> None:
    rng = np.random.default_rng(0)
    kept, new = rng.normal(size=(8, 20)), rng.normal(size=(3, 8, 20))
    x = np.stack([kept + 0.1 * new, new], axis=1)  # (epoch, layer, document, width)
    grams = stats.u_centred(x @ np.swapaxes(x, -1, -2))
    value, p = stats.cka_to_first(grams, rng, 199)
    cka = stats.debiased_cka(grams)
    for epoch, layer in itertools.product((1, 2), (0, 1)):
        assert value[epoch, layer] == pytest.approx(cka[epoch, layer, 0, layer])
    assert np.isnan(value[0]).all()
    assert np.isnan(p[0]).all()
    assert (p[1:, 0] == 1 / 200).all(), "a geometry that stays"
    assert (p[1:, 1] > 0.02).all(), "none"


def test_a_staircase_is_told_from_a_slope() -> None:
    rng = np.random.default_rng(0)
    steps = np.repeat(-np.arange(6.0), 20) + 0.1 * rng.normal(size=120)
    slope = -np.arange(120) / 20 + 0.1 * rng.normal(size=120)
    none = np.empty(0, dtype=int)
    value, p = stats.staircase(steps, 20, none, 0)
    assert value > 0.02
    assert p == 1 / 20
    value, p = stats.staircase(slope, 20, none, 0)
    assert value < 0
    # The stairs begin at document 7's turn.
    assert stats.staircase(np.roll(steps, 7), 20, np.arange(7), 7)[1] == 1 / 20
    assert stats.staircase(steps, 20, none, 5)[1] > 0.2
