"""Kernels of cycles and maps: planted structure is found, chance is called chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recovery_probe import stats
from recovery_probe.stats import coherence, components, geometry, stripe

T, EPOCHS, WIDTH = 10, 8, 30
SHARES = ("period_share", "cycle_share", "order")


def updates_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(E·T, d) updates without anything that epochs share but, of some, a trend."""
    noise = rng.normal(size=(EPOCHS * T, WIDTH))
    direction = rng.normal(size=WIDTH)
    time = np.arange(EPOCHS * T + 1)[:, None] / T  # in epochs
    match kind:
        case "white noise":
            return np.diff(rng.normal(size=(EPOCHS * T + 1, WIDTH)), axis=0)
        case "slowing drift":
            return noise + np.diff(-90 * np.exp(-time) * direction, axis=0)
        case "drift as a root of time":
            return noise + np.diff(100 * np.sqrt(time / EPOCHS) * direction, axis=0)
        case "shuffled":
            return own_updates(rng, *free_orders(rng, T, 0))[0] + 0.3 * noise
    return noise


def free_orders(rng: np.random.Generator, documents: int, kept: int) -> tuple[np.ndarray, int]:
    """A new order every epoch, the first `kept` documents in their places; and T."""
    orders = [[*range(kept), *(kept + rng.permutation(documents - kept))] for _ in range(EPOCHS)]
    return np.array(orders).ravel(), documents


def own_updates(
    rng: np.random.Generator, order: np.ndarray, documents: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each document's own update, a tenth smaller every epoch, in an order."""
    shrink = 0.9 ** np.repeat(np.arange(EPOCHS), documents)
    return shrink[:, None] * rng.normal(size=(documents, WIDTH))[order], order


def helix(rng: np.random.Generator, turns: int = 1, noise: float = 0.05) -> np.ndarray:
    """(E·T, d) updates of a helix that tightens, in random directions, with noise."""
    t = np.arange(EPOCHS * T + 1)
    radius = 0.85 ** (t / T)
    angle = 2 * np.pi * turns * t / T
    path = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.05 * t], axis=1)
    path = path @ rng.normal(size=(3, WIDTH)) + noise * rng.normal(size=(len(t), WIDTH))
    return np.diff(path, axis=0)


KINDS = ("random walk", "white noise", "shuffled", "slowing drift", "drift as a root of time")


def rates(p: list[np.ndarray]) -> np.ndarray:
    return (np.array(p) <= 0.05 + 1e-9).mean(axis=0)


def stripe_p(moved: np.ndarray, documents: int, rng: np.random.Generator) -> np.ndarray:
    """Of 39 rotations, with all maps at once."""
    epochs = len(moved) // documents
    orders = stats.rotations(documents, epochs, 39, rng)
    orders = np.concatenate([np.arange(len(moved))[None], orders])
    rest = stats.without_trend(moved, documents)
    residual = residual_map(documents, epochs) @ rest[orders]
    cosine = stats.cosines(residual @ residual.transpose(0, 2, 1))
    i, j = np.triu_indices(cosine.shape[1], documents // 2 + 1)
    whole = (j - i) % documents == 0
    pairs = cosine[:, i, j]
    return stats.of_draws((pairs[:, whole].mean(axis=1) - pairs[:, ~whole].mean(axis=1))[:, None])[
        0
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_chance_gives_uniform_p_values(kind: str) -> None:
    p = []
    for seed in range(1000, 1300):
        rng = np.random.default_rng(seed)
        rest = stats.without_trend(updates_of(kind, rng), T)
        found = coherence(rest, T, 99, rng)
        turns = stats.either_way(geometry(rest, T)["turned"], rng)
        draws = [found[name] for name in SHARES]
        p.append(
            [*stats.of_draws(np.stack(draws, axis=1))[0], stats.of_draws(turns[:, None])[0][0]]
        )
    found = rates(p)
    assert ((found >= 0.02) & (found <= 0.08)).all(), found


def test_a_drift_that_slows_down_is_a_cycle_until_it_is_taken_out() -> None:
    p = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        draws = coherence(updates_of("slowing drift", rng), T, 99, rng)["cycle_share"]
        p.append(stats.of_draws(draws[:, None])[0])
    assert rates(p)[0] > 0.5


@pytest.mark.parametrize("kind", ["random walk", "slowing drift", "keep_first"])
def test_chance_makes_no_stripes(kind: str) -> None:
    """In a schedule that keeps document 0 first its own updates are stripes, unless left out."""
    p, with_it = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        if kind != "keep_first":
            p.append(stripe_p(updates_of(kind, rng)[: 5 * T], T, rng))
            continue
        moved, order = own_updates(rng, *free_orders(rng, T, 1))
        moved = (moved + 0.3 * rng.normal(size=moved.shape))[: 5 * T]
        free = stats.free_to_move(order[: 5 * T], T)
        p.append(stripe_p(moved[free], free.sum() // 5, rng))
        with_it.append(stripe_p(moved, T, rng))
    assert 0.02 <= rates(p)[0] <= 0.08, rates(p)
    assert kind != "keep_first" or rates(with_it)[0] > 0.25


def test_places_that_are_kept() -> None:
    order, _ = free_orders(np.random.default_rng(0), T, 2)
    assert stats.free_to_move(order, T).reshape(EPOCHS, T).sum(axis=1).tolist() == [T - 2] * EPOCHS
    assert stats.free_to_move(np.tile(np.arange(T), EPOCHS), T).all(), "a cycle"


@pytest.mark.parametrize("amount", [0.3, 0.5])
def test_power_for_updates_that_repeat(amount: float) -> None:
    """Taking out a trend does not take out the cycle, be the drift steady or slowing."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        repeated = np.tile(rng.normal(size=(T, WIDTH)), (EPOCHS, 1))
        rest = stats.without_trend(amount * repeated + updates_of("slowing drift", rng), T)
        draws = coherence(rest, T, 99, rng)
        found.append(stats.of_draws(np.stack([draws[name] for name in SHARES], axis=1))[0])
    period, cycle, _ = rates(found)
    assert period > 0.6
    assert cycle > 0.9


def test_a_trend_is_a_polynomial_of_the_path() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(EPOCHS * T + 1.0)
    degree = EPOCHS // 2 + 1
    path = np.polyval(rng.normal(size=degree + 1), time / len(time))
    rest = stats.without_trend(np.diff(path)[:, None], T)
    np.testing.assert_allclose(rest, 0, atol=1e-12)
    moved = rng.normal(size=(EPOCHS * T, 2))
    walk = np.concatenate([np.zeros((1, 2)), moved.cumsum(axis=0)])
    for axis in range(2):
        trend = np.polynomial.Polynomial.fit(time, walk[:, axis], degree)(time)
        expected = np.diff(walk[:, axis] - trend)
        np.testing.assert_allclose(stats.without_trend(moved, T)[:, axis], expected, atol=1e-9)


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
        expected = np.array([observed, *(statistics(o) for o in orders)]).T
        found = coherence(vectors, documents, 49, np.random.default_rng(3))
        tested = 3 if documents > 3 else 2  # of three, two places of a loop tie
        for name, draws in list(zip(SHARES, expected, strict=True))[:tested]:
            np.testing.assert_allclose(found[name], draws, atol=1e-10)
    else:
        found = coherence(vectors, 2, 9, rng)
        assert all(np.isnan(found[name]).all() for name in SHARES)


def test_a_planted_helix_is_found() -> None:
    rng = np.random.default_rng(0)
    moved = helix(rng)
    moved = stats.without_trend(moved, T)
    found = coherence(moved, T, 199, rng) | geometry(moved, T)
    assert found["period_share"][0] > 0.8
    assert found["order"][0] > 0.95
    assert found["tightening"] == pytest.approx(np.log(0.85), abs=0.03)
    p, null, _ = stats.of_draws(np.stack([found[name] for name in SHARES], axis=1))
    assert (p < 0.01).all()
    assert null[1] == pytest.approx(1 / EPOCHS, abs=0.03)
    turns = stats.either_way(found["turned"], rng)
    assert turns[0] == pytest.approx(1, abs=0.02)
    assert len(turns) == 2 ** (EPOCHS - 1)
    # The least that seven cycles can give.
    assert stats.of_draws(turns[:, None])[0] == 2.0 ** (1 - (EPOCHS - 1))
    # Twice round an epoch is another period, and not the documents' order along one turn.
    twice = helix(rng, turns=2)
    other = coherence(twice, T, 199, rng)
    assert other["period_share"][0] < 0.1 < 0.8 < other["cycle_share"][0]
    assert abs(geometry(twice, T)["turned"].mean()) == pytest.approx(2, abs=0.05)


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


def stairs(kind: str, documents: int, rng: np.random.Generator) -> np.ndarray:
    """(6·T, 2): log sizes that fall by steps or steadily, the second with the documents' own."""
    time = np.arange(6 * documents) / documents
    fall = np.floor(time) if kind == "steps" else time
    own = np.tile(rng.normal(size=documents), 6)
    noise = 0.1 * rng.normal(size=(2, len(time)))
    return np.stack([-0.3 * fall + noise[0], -0.3 * fall + noise[1] + 0.1 * own], axis=1)


def test_a_staircase_is_told_from_a_slope() -> None:
    rng = np.random.default_rng(0)
    steps = stairs("steps", 20, rng)[:, :1]
    places = stats.staircases(steps, np.arange(120), 20, 0)
    assert places[0] > 0.02
    assert stats.of_draws(places)[0] == 1 / 20
    assert stats.of_draws(stats.staircases(steps, np.arange(120), 20, 5))[0] > 0.2
    # By definition, at the true place.
    y, x = steps[:, 0], np.arange(120)
    line = np.polynomial.Polynomial.fit(x, y, 1)(x)
    level = np.repeat(y.reshape(6, 20).mean(axis=1), 20)
    squares = [((y - fit) ** 2).sum() for fit in (line, level, y.mean())]
    assert places[0, 0] == pytest.approx((squares[0] - squares[1]) / squares[2])
    # The stairs begin at document 7's turn, whose own episodes do not count.
    counted = x[x % 20 != 7]
    seventh = stats.staircases(np.roll(steps, 7, axis=0)[counted], counted, 19, 7)
    assert stats.of_draws(seventh)[0] == 1 / 19
    assert np.isnan(stats.staircases(np.where(x == 3, np.nan, y)[:, None], x, 20, 0)).all()


@pytest.mark.parametrize(("documents", "own"), [(20, None), (21, 0), (21, 7), (21, 20)])
def test_a_steady_fall_has_no_place_of_its_own(documents: int, own: int | None) -> None:
    """Uniform p-values wherever the epochs begin, a document's own episodes left out or not."""
    time = np.arange(6 * documents)
    time = time[time % documents != own]
    places = documents - (own is not None)
    p = []
    for seed in range(400):
        sizes = stairs("line", documents, np.random.default_rng(seed))[time]
        p.append(stats.of_draws(stats.staircases(sizes, time, places, (own or 0) % places))[0])
    assert ((rates(p) >= 0.02) & (rates(p) <= 0.08)).all(), rates(p)
    np.testing.assert_allclose(np.mean(p, axis=0), 0.5 + 0.5 / places, atol=0.05)
