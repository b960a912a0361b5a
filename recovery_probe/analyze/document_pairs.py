"""Numbers for pairs of documents, of a run and its controls: what gradient_similarity and
pairwise_recovery say of them alike. Maps are (run, episodes_done, …, n, n), the run itself first
and documents in the order of the cycle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.errors import Missing

if TYPE_CHECKING:
    from recovery_probe.record.run import Run

DRAWS = 499  # of what a p-value is over, which is then .002 at least
# Documents that a test needs: of five, the ten pairs have next to nothing left after effects.
FEWEST = 6
UNDEFINED = "of fewer than four documents, or without differences between pairs"
INTERVALS = (
    "95%, over documents, as rows and as columns at once; of near_minus_far and reciprocity over "
    "pairs, after document effects"
)
TEST = (
    f"two-sided, {DRAWS} {{}}; none of fewer than {FEWEST} documents; p_adjusted: corrected over "
    "{} of a run by the largest correlation of each draw (Westfall and Young)"
)


def in_order(maps: stats.Floats, order: stats.Ints) -> stats.Floats:
    """(…, T, T + H): documents trained on in this order, held-out ones after them as they are."""
    return maps[..., order[:, None], [*order, *range(len(order), maps.shape[-1])]]


def counted(maps: stats.Floats) -> tuple[stats.Ints, stats.Ints, int]:
    """Of (…, T, T + H) maps: the rows, which are columns too, and the held-out columns that have
    all of their pairs, and how many documents are left out. A map that has none is not asked.
    Raises `Missing` where fewer than two rows are left."""
    T = maps.shape[-2]
    maps = maps.reshape(-1, *maps.shape[-2:])
    rows = stats.complete(maps[..., :T])
    if len(rows) < 2:
        raise Missing(
            f"{T - len(rows)} of {T} documents lack a pair somewhere, as one whose gradient is 0 "
            "does: there is nothing to compare"
        )
    held_out = np.isfinite(maps[:, rows, T:])
    whole = held_out[held_out.any(axis=(1, 2))].all(axis=(0, 1))
    columns = T + np.flatnonzero(whole)
    return rows, columns, maps.shape[-1] - len(rows) - len(columns)


def put(
    dataset: xr.Dataset,
    dims: Sequence[str],
    name: str,
    interval: Callable[..., stats.Interval],
    *maps: stats.Floats,
    null: bool = False,
    units: str = "",
) -> None:
    """What a linear statistic makes of the maps of each run, as `name` (run, …), whose `null` is 0
    if it has one; and, as `name_difference` (control, …), of those of the run minus those of each
    control: documents are paired, and the null is 0."""
    attrs = {"units": units} if units else {}
    value, low, high = interval(*maps)
    each = Estimate(value, low, high, null=np.zeros(value.shape) if null else None)
    estimate.put(dataset, name, ("run", *dims), each, **attrs)
    value, low, high = interval(*(m[:1] - m[1:] for m in maps))
    difference = Estimate(value, low, high, null=np.zeros(value.shape))
    estimate.put(dataset, f"{name}_difference", ("control", *dims), difference, **attrs)


def put_places(
    dataset: xr.Dataset,
    dims: Sequence[str],
    square: stats.Floats,
    runs: Sequence[Run],
    places: stats.Ints,
    order: stats.Ints,
    units: str = "",
) -> None:
    """Of maps whose documents stand at these places of the cycle: near_minus_far, in `units`,
    distance_r and distance_r_before, and the differences of the first two."""
    T, n = len(order), len(places)
    here = np.ix_(places, places)
    apart, rest = stats.distances(T)[here], stats.without_effects(square)

    def nearer(rest: stats.Floats) -> stats.Interval:
        return stats.near_minus_far(rest, apart)

    put(dataset, dims, "near_minus_far", nearer, rest, null=True, units=units)
    before = stats.correlation_of_pairs(square, apart)
    no_null = Estimate(before, null=np.zeros(before.shape))
    estimate.put(dataset, "distance_r_before", ("run", *dims), no_null)
    rng = runs[0].rng("orders")
    orders = np.stack([rng.permutation(n) for _ in range(DRAWS)])  # the same of every map
    straight = np.abs(places[:, None] - places).astype(float)
    r = np.empty((1 + DRAWS, *square.shape[:-2]))  # as it is first, then by chance
    for run, time in np.ndindex(square.shape[:2]):
        episodes = int(dataset.episodes_done[time])
        last = stats.since_last(runs[run].schedule.values, episodes, T)[np.ix_(order, order)][here]
        maps = square[run, time].reshape(-1, n, n)
        rivals = np.stack([straight, last])
        found = stats.partial_mantel(maps, apart, rivals, orders)
        r[:, run, time] = np.vstack(found).reshape(-1, *square.shape[2:-2])
    estimate.put(dataset, "distance_r", ("run", *dims), tested(r, n))
    difference = tested(r[:, :1] - r[:, 1:], n)
    estimate.put(dataset, "distance_r_difference", ("control", *dims), difference)


def put_reciprocity(
    dataset: xr.Dataset, dims: Sequence[str], square: stats.Floats, rng: np.random.Generator
) -> None:
    """reciprocity of (run, episodes_done, …, n, n) maps, and its difference."""
    rest, n = stats.without_effects(square), square.shape[-1]
    value, low, high = stats.reciprocity(rest)
    shuffles = np.stack([rng.permutation(n * (n - 1) // 2) for _ in range(DRAWS)])
    by_chance = stats.reciprocity_by_chance(rest, shuffles)
    test = tested(np.concatenate([value[None], by_chance]), n)
    reciprocity = dataclasses.replace(test, low=low, high=high)
    estimate.put(dataset, "reciprocity", ("run", *dims), reciprocity)
    value, low, high = stats.reciprocity(rest[:1], rest[1:])
    difference = Estimate(value, low, high, null=np.zeros(value.shape))
    estimate.put(dataset, "reciprocity_difference", ("control", *dims), difference)


def tested(r: stats.Floats, documents: int) -> Estimate:
    """A correlation, first in (1 + draws, run, …), by chance in the others, which are the same
    draws of every map: with two-sided p-values, p_adjusted over the largest of a run at each."""
    size = np.abs(r)
    largest = np.fmax.reduce(size, axis=tuple(range(2, r.ndim)), keepdims=True)
    p, adjusted = (stats.permutation_p(size[0], chance[1:]) for chance in (size, largest))
    if documents < FEWEST:
        p = adjusted = np.full_like(p, np.nan)
    return Estimate(r[0], p=p, null=r[1:].mean(axis=0), p_adjusted=adjusted)


def said_of(dataset: xr.Dataset) -> str:
    """What a verdict adds: how many documents are left out, and what one run cannot tell."""
    left_out = int(dataset.left_out)
    text = f" {left_out} documents lack some pairs and are left out." if left_out else ""
    if dataset.attrs["unit"] == "documents":
        text += " Intervals are spread over documents; one run decides nothing."
        if np.isnan(estimate.get(dataset, "distance_r").p).all():
            text += f" A p-value needs {FEWEST} documents."
    return text
