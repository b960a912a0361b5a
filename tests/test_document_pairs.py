"""gradient_similarity and pairwise_recovery on planted maps, of a run and its control."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from recovery_probe_analyses import gradient_similarity, pairwise_recovery
from recovery_probe_analyses.gradient_similarity import GradientSimilarity
from recovery_probe_analyses.pairwise_recovery import PairwiseRecovery

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import document_pairs
from recovery_probe.analyze.across import across
from recovery_probe.seeds import generator

T, H = 12, 4
PLACE = np.arange(T)
RING = 0.4 * np.cos(2 * np.pi * (PLACE[:, None] - PLACE) / T)
GROUPS = ["attention", "block 0", "block 0 attention", "total"]


def runs(documents: int = T) -> list[Any]:
    """What the analyses ask of a run and its control: no more than the schedule and a name."""

    def run(kind: str, schedule: np.ndarray) -> SimpleNamespace:
        config = SimpleNamespace(schedule=SimpleNamespace(kind=kind))
        return SimpleNamespace(
            path=Path(kind),
            config=config,
            schedule=xr.DataArray(schedule),
            episodes_done=len(schedule),
            rng=lambda purpose: generator(0, purpose),
        )

    order = np.arange(documents)
    shuffled = np.random.default_rng(0).permutation(documents)
    return [run("cyclic", np.tile(order, 2)), run("shuffled", np.tile(shuffled, 2))]


def noise(seed: int, documents: int = T, others: int = H) -> np.ndarray:
    """(run, time, group, T, T + H), symmetric among the documents trained on."""
    drawn = np.random.default_rng(seed).normal(size=(2, 2, 4, documents, documents + others))
    drawn[..., :documents] += np.swapaxes(drawn[..., :documents], -1, -2)
    return 0.05 * drawn


def gradients(cosine: np.ndarray, order: np.ndarray | None = None) -> xr.Dataset:
    order = np.arange(cosine.shape[-2]) if order is None else order
    times = [len(order), 2 * len(order)]
    return gradient_similarity._numbers(cosine, GROUPS, runs(len(order)), times, order)


def drops(drop: np.ndarray) -> xr.Dataset:
    documents = drop.shape[-2]
    order = np.arange(documents)
    return pairwise_recovery._numbers(drop, runs(documents), [documents, 2 * documents], order)


def planted(seed: int = 1) -> np.ndarray:
    """A ring in the run, none in its control, and held-out documents less alike."""
    cosine = noise(seed) + 0.5
    cosine[0, ..., :T] += RING
    cosine[..., T:] -= 0.3
    return cosine


def test_planted_maps_give_back_their_structure() -> None:
    found = gradients(planted()).isel(episodes_done=1).sel(group="total")
    run, control = found.sel(run="cyclic"), found.sel(run="shuffled")
    np.testing.assert_allclose(run.by_lag, 0.5 + RING[0, 1:7], atol=0.06)
    assert run.overall == pytest.approx(0.5 + RING[0, 1:].mean(), abs=0.03)
    assert run.held_out == pytest.approx(0.2, abs=0.03)
    assert run.near_minus_far == pytest.approx(RING[0, 1] - RING[0, 6], abs=0.06)
    assert run.near_minus_far_low > 0
    assert control.near_minus_far_low < 0 < control.near_minus_far_high
    assert run.distance_r_before < -0.9
    assert run.distance_r < -0.7
    assert run.distance_r_p == run.distance_r_p_adjusted == 1 / 500
    assert control.distance_r_p > 0.05
    assert abs(run.distance_r_null) < 0.05
    difference = found.sel(control="shuffled")
    assert difference.overall_difference == pytest.approx(run.overall - control.overall)
    expected = run.near_minus_far - control.near_minus_far
    assert difference.near_minus_far_difference == pytest.approx(expected)
    assert difference.near_minus_far_difference_low > 0
    assert difference.distance_r_difference_p_adjusted <= 0.01
    hill = np.exp(-((PLACE - 7) ** 2) / 8)
    cosine = noise(2)
    cosine[..., :T] += np.outer(hill, hill)
    found = gradients(cosine)
    assert (abs(found.peak - 7 / 11) < 1.1 / 11).all()
    assert (found.distance_r_p_adjusted > 0.05).all(), "a bright centre is no neighbourhood"


def test_documents_count_by_their_place_in_the_cycle() -> None:
    order = np.random.default_rng(1).permutation(T)
    cosine = planted()
    numbered = np.empty_like(cosine)
    both = [*order, *range(T, T + H)]
    numbered[..., order[:, None], both] = cosine
    np.testing.assert_array_equal(document_pairs.in_order(numbered, order), cosine)
    found = gradients(document_pairs.in_order(numbered, order), order)
    names = ["near_minus_far", "distance_r_before", "by_lag", "overall"]
    xr.testing.assert_allclose(found[names], gradients(cosine)[names])


def test_recency_is_a_rival_where_documents_came_in_another_order() -> None:
    """Cosines that fall with how long ago two documents were trained on, whatever their places."""
    cosine = noise(3)
    schedule = runs()[1].schedule.values
    cosine[..., :T] -= stats.since_last(schedule, 2 * T, T) / T
    found = gradients(cosine).sel(run="shuffled")
    assert (found.distance_r_p_adjusted > 0.05).all()


def test_documents_without_a_gradient_are_left_out_and_counted() -> None:
    cosine = planted()
    bare = cosine.copy()
    bare[0, 1, 2, 3] = bare[0, 1, 2, :, 3] = np.nan  # a document in one group at one time
    bare[1, 0, 0, :, T + 1] = np.nan  # a held-out one
    bare[0, 0, 3] = np.nan  # a group without gradients
    found, kept = gradients(bare), np.delete(PLACE, 3)
    assert found.left_out == 2
    for name in ("overall", "held_out", "near_minus_far", "distance_r", "distance_r_p"):
        assert np.isnan(found[name][0, 0, 3])
        assert np.isfinite(found[name]).sum() == found[name].size - 1
    expected = stats.mean_of_pairs(cosine[1, 1, 3][np.ix_(kept, kept)])
    assert found.overall[1, 1, 3] == pytest.approx(expected[0])
    assert "2 documents lack some pairs and are left out" in GradientSimilarity().verdict(found)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("documents", [2, 3, 4, 5])
def test_of_few_documents_there_is_no_test(documents: int) -> None:
    square = noise(4, documents, 1)
    for analysis, found in (
        (GradientSimilarity(), gradients(square)),
        (PairwiseRecovery(), drops(square[:, :, 0])),
    ):
        assert np.isnan(found.distance_r_p).all()
        assert np.isnan(found.distance_r_p_adjusted).all()
        assert "A p-value needs 6 documents" in analysis.summary(found)["verdict"]
        if documents == 2:
            analysis.plot(found)


def test_any_of_many_groups_is_significant_in_5_percent() -> None:
    """Twelve groups that share half of their noise, in 300 draws."""
    rng = np.random.default_rng(5)
    maps = rng.normal(size=(300, 12, T, T)) + rng.normal(size=(300, 1, T, T))
    orders = np.stack([rng.permutation(T) for _ in range(199)])
    straight = np.abs(PLACE[:, None] - PLACE)[None].astype(float)
    found = stats.partial_mantel(maps.reshape(-1, T, T), stats.distances(T), straight, orders)
    tested = document_pairs.tested(np.vstack(found).reshape(200, 300, 12), T)
    assert 0.02 <= (tested.p_adjusted <= 0.05).any(axis=1).mean() <= 0.08
    assert 0.02 <= (tested.p <= 0.05).mean() <= 0.08
    assert (tested.p <= 0.05).any(axis=1).mean() > 0.2


def test_planted_drops_give_back_their_structure() -> None:
    rng = np.random.default_rng(6)
    give, gain = rng.normal(size=(2, T))
    drop = 0.05 * rng.normal(size=(2, 2, T, T + H))
    drop[..., :T] += 1 + give[:, None] + gain
    drop[..., T:] += 0.5 + give[:, None]
    pairs = 0.2 * rng.normal(size=(T, T))
    drop[0, ..., :T] += RING / 4 + pairs + pairs.T
    dataset = drops(drop)
    found = dataset.isel(episodes_done=0)
    run, control = found.sel(run="cyclic"), found.sel(run="shuffled")
    assert run.own == pytest.approx(np.diagonal(drop[0, 0]).mean())
    assert run.more_than_held_out == pytest.approx(run.others - run.held_out)
    assert run.near_minus_far == pytest.approx((RING[0, 1] - RING[0, 6]) / 4, abs=0.25)
    ahead = np.mean([drop[0, 0, i, (i + 2) % T] for i in range(T)])
    assert run.lag_drop.sel(lag=2) == pytest.approx(ahead)
    assert run.reciprocity > 0.8
    assert run.reciprocity_low > 0.6
    assert run.reciprocity_p == run.reciprocity_p_adjusted == 1 / 500
    assert control.reciprocity_p > 0.05
    assert control.reciprocity_low < 0 < control.reciprocity_high
    assert found.sel(control="shuffled").reciprocity_difference_low > 0.4
    of_rest = stats.variances(stats.effects(drop[1, 0, :, :T]))
    np.testing.assert_allclose(
        control.variance.sel(component=["row", "column", "row_and_column", "rest", "pair"]),
        [of_rest.row, of_rest.column, of_rest.both, of_rest.rest, of_rest.pair],
    )
    # What trained documents gain is not taken for that of one draw of them.
    assert control.others_high - control.others_low > 1
    assert found.sel(control="shuffled").others_difference_high < 0.3


def test_they_are_said_and_drawn_of_one_run_and_of_seeds() -> None:
    for analysis, one, other in (
        (GradientSimilarity(), gradients(planted(1)), gradients(planted(2))),
        (PairwiseRecovery(), drops(planted(1)[:, :, 0]), drops(planted(2)[:, :, 0])),
    ):
        text = analysis.verdict(one)
        assert "one run decides nothing" in text
        assert "Run minus control shuffled" in text
        assert "one run decides nothing" not in analysis.verdict(across([one, other]))


@pytest.mark.parametrize(("share", "found"), [(0.5, True), (0.0, False)])
def test_plain_least_squares_has_neighbours_where_documents_share(
    share: float, found: bool, tmp_path: Path
) -> None:
    """No network and no feature: what a verdict must not take for one."""
    settings = {"share": share, "documents": 12, "epochs": 4, "held_out": 3, "seed": 1}
    run = rp.simulate("linear_documents", tmp_path, **settings)
    last = GradientSimilarity()(run, *run.controls).sel(group="total").isel(episodes_done=-1)
    assert bool(last.distance_r_p_adjusted[0] <= 0.05) is found
    assert bool(last.near_minus_far_difference_low[0] > 0) is found
    assert last.distance_r_p_adjusted[1] > 0.05
    assert "H1" in GradientSimilarity.blind_spot
