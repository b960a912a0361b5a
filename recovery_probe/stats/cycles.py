"""What repeats with the cycle in a trajectory. `moved` is always (E·T, d): the update of every
episode of whole epochs, T documents each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from recovery_probe.stats.inference import Floats, Ints, slope


def circular_correlation(theta: Floats, phi: Floats) -> Floats:
    """Correlation of two angles (radians) over the last axis, -1 … 1 (Fisher and Lee 1983):

        Σ sin(θᵢ-θⱼ) sin(φᵢ-φⱼ) / √(Σ sin²(θᵢ-θⱼ) Σ sin²(φᵢ-φⱼ)), over pairs i < j.

    1 when one turns with the other, -1 when it turns against it, near 0 when neither.
    """

    def pairs(a: Floats, b: Floats) -> Floats:
        # Σ over all i, j of sin(aᵢ-aⱼ) sin(bᵢ-bⱼ), from 2 sin x sin y = cos(x-y) - cos(x+y)
        both, apart = np.exp(1j * (a + b)).sum(-1), np.exp(1j * (a - b)).sum(-1)
        return (np.abs(apart) ** 2 - np.abs(both) ** 2) / 2

    with np.errstate(invalid="ignore", divide="ignore"):
        return pairs(theta, phi) / np.sqrt(pairs(theta, theta) * pairs(phi, phi))


def compact(vectors: Floats) -> Floats:
    """(n, at most n) vectors with the inner products of (n, d) ones."""
    return np.asarray(np.linalg.qr(vectors.T, mode="r")).T


def without_trend(moved: Floats, documents: int) -> Floats:
    """Updates (E·T, d) of a path without its smooth trend: the polynomial of degree E // 2 + 1 in
    time that is closest to it. A drift that slows down bends the same way in every epoch, which
    would be a cycle; a polynomial with half as many bends as there are epochs follows it, and can
    follow no cycle."""
    path = np.pad(moved.cumsum(axis=0, dtype=float), ((1, 0), (0, 0)))
    time = np.linspace(-1, 1, len(path))
    degree = len(moved) // documents // 2 + 1
    basis, _ = np.linalg.qr(np.polynomial.legendre.legvander(time, degree))
    return np.diff(path - basis @ (basis.T @ path), axis=0)


def free_to_move(schedule: Ints, documents: int) -> NDArray[np.bool_]:
    """(E·T,): the episodes at those places of the cycle that have other documents in other epochs;
    all episodes where no place does, which is the cycle. What comes at one place in every epoch is
    periodic by itself."""
    by_epoch = schedule.reshape(-1, documents)
    free = (by_epoch != by_epoch[0]).any(axis=0)
    return np.tile(free if free.any() else ~free, len(by_epoch))


def episode_residuals(
    moved: Floats, documents: int, out: Floats | None = None
) -> tuple[Floats, Ints]:
    """Weight residuals (rows, d), and the episodes done at each row. `out` is where they go, if
    given.

    w_res(t) = w(t) - mean of w over the window of length T centred on t (paper, figure 8c). For
    an even T the window's two ends count half, so that it holds one cycle exactly: what has the
    cycle's period stays whole and a straight drift goes.
    """
    half, place = documents // 2, np.arange(documents)
    rows = np.arange(half, len(moved) + 1 - half)
    # Of the T updates from a window's start on: in w(t) when before t, less the share of the
    # window that comes after.
    after = (documents - place - (1 if documents % 2 else 0.5)) / documents
    band = np.zeros((documents, 2 * documents), moved.dtype)  # of T rows at a time
    band[place[:, None], place[:, None] + place] = (place < half) - after
    residual = np.empty((len(rows), moved.shape[1]), moved.dtype) if out is None else out
    for start in range(0, len(rows), documents):
        these, window = residual[start : start + documents], moved[start : start + 2 * documents]
        np.matmul(band[: len(these), : len(window)], window, out=these)
    return residual, rows


def epoch_loops(moved: Floats, documents: int) -> Floats:
    """Loops (E, T, d): the weights after each episode, less the straight line from the first to the
    last of its epoch, less the epoch's mean. Nothing of an epoch's loop is shared with another's,
    and its ends meet, so that a loop turned about itself (`rotations`) is as smooth as it was."""
    by_epoch = rearrange(moved, "(epoch place) sketch -> epoch place sketch", place=documents)
    weights = by_epoch.cumsum(axis=1)
    first, last = weights[:, :1], weights[:, -1:]
    loops = weights - first - np.linspace(0, 1, documents)[:, None] * (last - first)
    return loops - loops.mean(axis=1, keepdims=True)


def rotations(documents: int, epochs: int, count: int, rng: np.random.Generator) -> Ints:
    """(count, E·T): orders of the episodes in which each epoch is turned by an amount of its own.

    What repeats from epoch to epoch falls out of step; what an epoch is like within itself stays,
    above all how smoothly one episode follows another. A free permutation would destroy the
    smoothness that any trajectory has, and call a random walk cyclic.
    """
    shift = rng.integers(documents, size=(count, epochs, 1))
    within = (np.arange(documents) + shift) % documents
    orders = within + documents * np.arange(epochs)[:, None]
    return rearrange(orders, "order epoch place -> order (epoch place)")


def components(vectors: Floats, count: int = 3) -> tuple[Floats, Floats]:
    """Coordinates (n, count) of n points (n, d) on their principal components, and the share of
    their variance (count,); zeros beyond the d-th."""
    import scipy.linalg

    centred = vectors - vectors.mean(axis=0)
    d = centred.shape[1]
    values, directions = scipy.linalg.eigh(
        centred.T @ centred, subset_by_index=[max(0, d - count), d - 1]
    )
    missing = max(0, count - d)
    values = np.pad(values[::-1].clip(0), (0, missing))
    axes = np.pad(centred @ directions[:, ::-1], ((0, 0), (0, missing)))
    return axes, values / max((centred**2).sum(), 1e-300)


def coherence(moved: Floats, T: int, permutations: int, rng: np.random.Generator) -> dict[str, Any]:
    """Of the loops (`epoch_loops`), from updates of E epochs: period_share, the share of their
    variance at the cycle's period; cycle_share, at the period and all its harmonics, that is, in
    the mean over epochs at each place of the cycle (1/E is expected of epochs that have nothing in
    common); order, |circular correlation| between the angle in their leading plane and the place in
    the cycle. Each (1 + permutations,): the value, and those of turning each epoch about itself by
    a random amount. And loop (E·T, 3), loop_share (3,): the loops' `components`.

    Turning an epoch about itself moves where it meets another, and no more: what the shares need
    of two epochs, at every turn of one against the other, is worked out once.
    """
    loops = epoch_loops(moved, T)  # (epoch, place, sketch)
    epochs = len(loops)
    orders = np.stack([np.arange(len(moved)), *rotations(T, epochs, permutations, rng)])
    start = orders[:, ::T] % T  # (order, epoch)
    apart = (start[:, None, :] - start[:, :, None]) % T  # (order, epoch, other)
    waves = rearrange(np.fft.fft(loops, axis=1), "epoch harmonic sketch -> harmonic epoch sketch")
    power = waves.conj() @ rearrange(waves, "harmonic other sketch -> harmonic sketch other")
    # Inner products of two epochs' loops, summed over places, at each turn of the second.
    turned = np.fft.ifft(power, axis=0).real  # (turn, epoch, other)
    e, f = np.ogrid[:epochs, :epochs]
    cycle = turned[apart, e, f].sum(axis=(1, 2)) / epochs
    phase = np.exp(2j * np.pi * apart / T)
    period = 2 * (power[1] * phase).real.sum(axis=(1, 2)) / (epochs * T)
    # What a trend that was taken out has left of nothing is nothing: two documents make a line,
    # and no loop.
    total = (loops**2).sum()
    total = total if total > 1e-20 * (moved.cumsum(axis=0) ** 2).sum() else np.nan
    plane, share = components(rearrange(loops, "epoch place sketch -> (epoch place) sketch"))
    turn = np.arctan2(plane[:, 1], plane[:, 0])
    angle = 2 * np.pi * np.arange(len(moved)) / T
    order = np.abs(circular_correlation(turn[orders], angle))
    order = order if np.isfinite(total) else np.full(len(orders), np.nan)
    return {
        "period_share": period / total,
        "cycle_share": cycle / total,
        "order": order,
        "loop": plane,
        "loop_share": share,
    }


def geometry(moved: Floats, T: int) -> dict[str, Any]:
    """Of weight residuals (`episode_residuals`), in their leading plane: turned (cycle,), how often
    each cycle goes round, one direction positive; radius (cycle,), its mean; tightening, the slope
    by cycle of the log radius."""
    cycles = len(moved) // T - 1
    residual = episode_residuals(moved, T)[0][: cycles * T]
    plane, _ = components(residual, 2)
    turn = np.arctan2(plane[:, 1], plane[:, 0])
    by_cycle = rearrange(turn, "(cycle place) -> cycle place", place=T)
    between = (np.diff(by_cycle) + np.pi) % (2 * np.pi) - np.pi
    radius = rearrange(np.hypot(*plane.T), "(cycle place) -> cycle place", place=T).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # weights that did not move
        tightening = slope(np.log(radius))
    # T - 1 of the T steps of a cycle.
    turned = between.sum(axis=1) / (2 * np.pi) * T / max(T - 1, 1)
    return {"turned": turned, "radius": radius, "tightening": tightening}


def either_way(turned: Floats, rng: np.random.Generator, draws: int = 4096) -> Floats:
    """(draw, …): turns an epoch, |mean over cycles| of (cycle, …) signed ones, the observed first;
    and with each cycle turned either way: all ways, or `draws` random ones when there are more."""
    cycles = len(turned)
    if 2**cycles <= draws:
        signs = 1 - 2 * (np.arange(2**cycles)[:, None] >> np.arange(cycles) & 1)
    else:
        signs = rng.choice([-1, 1], (1 + draws, cycles))
        signs[0] = 1
    return np.abs(np.tensordot(signs, turned, axes=1)) / cycles


def stripe(residual: Floats, T: int) -> float:
    """How much more alike residuals (n, d) are, by mean cosine, at whole cycles than at other lags
    beyond T/2; NaN when one has no length. Sums over pairs come from sums of vectors, T at a time:
    the map of all pairs is not laid out."""
    n, half = len(residual), T // 2
    by_place, near = np.zeros((T, residual.shape[1])), 0.0
    before = np.empty((0, residual.shape[1]), residual.dtype)
    for start in range(0, n, T):
        block = residual[start : start + T]
        with np.errstate(invalid="ignore", divide="ignore"):
            block = block / np.linalg.norm(block, axis=1, keepdims=True)
        by_place[: len(block)] += block
        lags = np.arange(len(block)) - np.arange(-len(before), len(block))[:, None]
        counted = (lags > 0) & (lags <= half)
        near += ((np.concatenate([before, block]) @ block.T) * counted).sum()
        before = block[-half:]
    # Over the pairs within sets of vectors, from the sum of each set.
    whole, every = (float(((sums**2).sum() - n) / 2) for sums in (by_place, by_place.sum(axis=0)))
    count = n - np.arange(n)  # pairs at each lag
    wholes = count[T::T].sum()
    others = count[half + 1 :].sum() - wholes
    return whole / wholes - (every - near - whole) / others if others else np.nan


def stripes_of_orders(moved: Floats, columns: Sequence[slice], orders: Ints, T: int) -> Floats:
    """(order, columns): the stripe of the residuals of each of some columns, with the updates in
    each of the (order, E·T) orders. In float32: the vectors are large, and memory the floor."""
    coarse = moved.astype("float32")
    shuffled = np.empty_like(coarse)
    residual, _ = episode_residuals(coarse, T)
    stripes = np.empty((len(orders), len(columns)))
    for i, order in enumerate(orders):
        np.take(coarse, order, axis=0, out=shuffled, mode="clip")  # `raise` would copy once more
        episode_residuals(shuffled, T, residual)
        stripes[i] = [stripe(residual[:, own], T) for own in columns]
    return stripes


def staircases(size: Floats, time: Ints, T: int, begin: int) -> Floats:
    """(T, group): R² of a level for each epoch minus that of a straight line, of (E·T, group)
    sizes at (E·T,) times, with epochs that begin at each of the T places, `begin` first. NaN where
    a size is.

    All places have E levels, of the same episodes: the sizes go on after their end as they began,
    lower by as much as the line falls. Of sizes that fall steadily no place fits better than
    another, nor one beside which an episode is missing: the line is one in time.
    """
    since = time - time.mean()
    level = size - size.mean(axis=0)
    fall = since @ level / (since @ since)  # (group,), by episode
    rest = level - since[:, None] * fall
    place = np.arange(T) - (T - 1) / 2
    fits = []
    for start in range(begin, begin + T):
        cycles = np.roll(rest, -start, axis=0).reshape(-1, T, size.shape[1])
        cycles = cycles + place[:, None] * fall
        fits.append(((cycles - cycles.mean(axis=1, keepdims=True)) ** 2).sum(axis=(0, 1)))
    with np.errstate(invalid="ignore", divide="ignore"):  # sizes that are all the same
        return ((rest**2).sum(axis=0) - np.stack(fits)) / (level**2).sum(axis=0)
