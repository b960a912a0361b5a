"""The mechanism analyses: on runs, planted losses and schedules."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from recovery_probe_analyses.activation_similarity import ActivationSimilarity
from recovery_probe_analyses.step_sizes import StepSizes
from recovery_probe_analyses.token_recovery import TokenRecovery
from recovery_probe_analyses.weight_cyclicity import WeightCyclicity
from recovery_probe_analyses.weight_residuals import WeightResiduals

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.across import across
from recovery_probe.analyze.modules import module_groups
from recovery_probe.analyze.trajectory import flat, updates
from recovery_probe.errors import Missing
from recovery_probe.testing import toy_settings as tiny


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A tiny run with a checkpoint after every episode, and wide sketches."""
    out = tmp_path_factory.mktemp("dense") / "run"
    settings = tiny(
        checkpoints={"every": "episode"},
        sketch=1021,
        residual_stream={"focal": 1, "focal_layers": "all"},
    )
    return rp.fit(settings, out)


def test_weight_residuals_are_those_of_the_full_weights(dense: rp.Run) -> None:
    from recovery_probe.models import Model

    def whole(episodes_done: int) -> np.ndarray:
        model: Model = dense.model_at(episodes_done)
        return np.concatenate([p.detach().numpy().ravel() for p in model.parameters.values()])

    weights = np.stack([whole(t) for t in range(16)]).astype("float64")
    residual, _ = stats.episode_residuals(np.diff(weights, axis=0), 5)
    exact = stats.cosines(residual @ residual.T)
    found = WeightResiduals(permutations=9)(dense).sel(group="total").cosine.values[0]
    error = dense.provenance["recorders"]["gradients"]["sketch_error"]["expected_at_most"]
    assert np.abs(found - exact).max() < 3 * error
    assert np.abs(found - exact).max() > 0


def test_activations_are_those_of_every_pair_of_episodes(dense: rp.Run) -> None:
    streams = dense.residual_stream.focal.values.astype("float64")  # (16, layer, position, width)
    for layer, chosen in ((None, -1), (1, 1)):
        found = ActivationSimilarity(layer=layer)(dense)
        for i, j in ((0, 3), (7, 12)):
            a, b = streams[i, chosen].ravel(), streams[j, chosen].ravel()
            expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert found.cosine.values[0, i, j] == pytest.approx(expected, abs=1e-4)
        block = found.cosine.values[0, 6:11, 11:16]
        assert found.alike.sel(epoch=2, other_epoch=3).item() == pytest.approx(block.mean())
    np.testing.assert_array_equal(dense.residual_stream.final, dense.residual_stream.focal[:, -1])
    with pytest.raises(rp.InputError, match="layers are 0 to 2"):
        ActivationSimilarity(layer=3)(dense)


def test_step_sizes_by_hand(dense: rp.Run) -> None:
    found = StepSizes()(dense).isel(run=0)
    final = dense.residual_stream.final.values.astype("float64")
    change = np.linalg.norm((final[8] - final[7]).ravel())
    assert found.moved.sel(size="activation", episode=7).item() == pytest.approx(change, rel=1e-5)
    norms = dense.weight_deltas.norm.values[21:24]  # (3 steps of episode 7, module)
    path = np.sqrt((norms**2).sum(axis=1)).sum()
    assert found.path.sel(group="total", episode=7).item() == pytest.approx(path, rel=1e-5)
    weights = [dense.weights_at(t) for t in (7, 8)]
    exact = np.sqrt(sum(((weights[1][n] - weights[0][n]) ** 2).sum() for n in weights[0]))
    assert found.moved.sel(size="total", episode=7).item() == pytest.approx(exact, rel=0.1)


def test_likeness_to_the_first_epoch(dense: rp.Run) -> None:
    """That of CKA at one layer; an epoch is not compared with itself, and nothing is tested."""
    found = ActivationSimilarity()(dense).isel(run=0)
    assert np.isnan(found.to_first.sel(epoch=1)).all()
    for epoch, layer in itertools.product((2, 3), found.layer.values):
        expected = found.cka.sel(epoch=epoch, layer=layer, other_epoch=1, other_layer=layer)
        assert found.to_first.sel(epoch=epoch, layer=layer) == expected
    assert estimate.get(found, "growth").p is None
    np.testing.assert_allclose(found.growth, np.polyfit(np.arange(3), found.within, 1)[0])


@pytest.mark.parametrize("analysis", [WeightCyclicity(9), WeightResiduals(9), StepSizes()])
def test_run_minus_control(analysis: Any, pair: rp.Run) -> None:
    found = analysis(pair, *pair.controls)
    value = found[analysis.tested].transpose("run", ...).values
    difference = estimate.get(found, f"{analysis.tested}_difference")
    np.testing.assert_allclose(difference.value, value[:1] - value[1:])
    assert np.isnan([difference.low, difference.high]).all(), "one run"
    said = analysis.summary(found)["verdict"]
    assert "(shuffled; one run, no interval)" in said
    alone = analysis(pair)
    assert alone.sizes["control"] == 0
    assert "Run minus control" not in analysis.summary(alone)["verdict"]
    seeds = across(
        [
            found,
            found.assign(
                {analysis.tested + "_difference": found[analysis.tested + "_difference"] + 1}
            ),
        ]
    )
    assert np.isfinite(estimate.get(seeds, f"{analysis.tested}_difference").low).all()
    assert "over 2 seeds" in analysis.summary(seeds)["verdict"]


def test_tests_that_cannot_tell_are_not_made(dense: rp.Run) -> None:
    """Turns of fewer than six cycles, staircases of fewer than twenty places, and what a schedule
    keeps in its place without being a cycle."""
    cyclicity = WeightCyclicity(permutations=9)
    found = cyclicity(dense).isel(run=0)
    assert estimate.get(found, "turns").p is None
    assert "no test of fewer than six cycles" in cyclicity.summary(cyclicity(dense))["verdict"]
    assert np.isfinite(found.cycle_share_p).all()
    sizes = StepSizes()(dense)
    assert np.isnan(sizes.staircase_p).all()
    assert np.isfinite(sizes.staircase_null.sel(size=["total", "activation"])).all()
    assert "none, as 4 places" in sizes.attrs["p"]
    run = rp.open_run(dense.path)
    kept = [0, 1, 2, 3, 4, 0, 2, 4, 1, 3, 0, 4, 3, 2, 1]
    run.__dict__["schedule"] = dense.schedule.copy(data=np.array(kept))
    found = cyclicity(run)
    assert found.keeps_places.all()
    assert np.isnan(found.cycle_share_p).all()
    assert "documents keep their places" in cyclicity.summary(found)["verdict"]
    residuals = WeightResiduals(permutations=9)
    found = residuals(run)
    assert found.left_out.values.tolist() == [1]
    assert np.isnan(found.stripe_p).all()
    assert "1 left out that kept their places: no test" in residuals.summary(found)["verdict"]
    # The stripe is that of the others' updates alone.
    moved = flat(updates(run, 15), np.ones(dense.gradients.sizes["module"], dtype=bool))
    others = stats.without_trend(stats.compact(moved[np.array(kept) != 0]), 4)
    expected = stats.stripe(stats.episode_residuals(others, 4)[0], 4)
    assert found.stripe.sel(group="total").item() == pytest.approx(expected, abs=1e-4)


def test_activations_that_overflow_float16_are_refused(dense: rp.Run, tmp_path: Path) -> None:
    shutil.copytree(dense.path, tmp_path / "run")
    path = tmp_path / "run" / "record.zarr" / "residual_stream"
    zarr.open_group(path, mode="r+", use_consolidated=False)["final"][3, 2, 7] = np.inf
    run = rp.open_run(tmp_path / "run")
    for analysis in (ActivationSimilarity(), StepSizes()):
        with pytest.raises(Missing, match="document 1 is not finite: its values do not fit"):
            analysis(run)


def test_short_documents_are_compared_up_to_their_end(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    words = [[str(10007 * (40 * i + j)) for j in range(3 + i // 2)] for i in range(7)]
    texts.write_text("\n".join(map(" ".join, words)))
    settings = tiny(documents={"source": str(texts), "min_tokens": 2, "tokens": 60})
    run = rp.fit(settings, tmp_path / "run")
    focal = run.config.residual_stream.focal
    length = int(run.record.length[focal])
    streams = run.recorder("residual_stream").final.values[:, :length].astype("float64")
    assert length < run.record.sizes["position"]
    a, b = streams[2].ravel(), streams[9].ravel()
    found = ActivationSimilarity()(run).cosine.values[0, 2, 9]
    assert found == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-4)


@pytest.mark.parametrize("every", ["episode", "3 steps", "2 steps", "2 episodes"])
def test_weights_of_other_times_than_asked_for(every: str, tmp_path: Path) -> None:
    """Episodes as a whole are enough, but for the path of single steps; other stretches are
    refused, with what would help."""
    settings = tiny(weight_deltas={"every": every})
    try:
        run = rp.fit(settings, tmp_path / "run")
    except rp.InputError:
        return  # not a time that a recorder can have
    if every in ("episode", "3 steps"):  # an episode has three
        found = StepSizes()(run)
        assert np.isfinite(found.moved).all()
        assert np.isnan(found.path).all()
        return
    for analysis in (StepSizes(), WeightResiduals(), WeightCyclicity()):
        with pytest.raises(Missing, match=r"train again with --weight_deltas\.every episode"):
            analysis(run)


def test_a_schedule_of_a_third_party(dense: rp.Run) -> None:
    """Documents that come unequally often, or twice an epoch: what can be said is said, and what
    takes epochs for cycles is not."""
    run = rp.open_run(dense.path)
    uneven = [0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3]
    mixed = [0, 1, 0, 1, 2, 3, 4, 2, 3, 4, 0, 1, 2, 3, 4]
    for schedule in (uneven, mixed):
        run.__dict__["schedule"] = dense.schedule.copy(data=np.array(schedule))
        assert TokenRecovery()(run).left_out.item() >= 0
        for analysis in (WeightResiduals, WeightCyclicity, StepSizes, ActivationSimilarity):
            with pytest.raises(Missing, match="does not train on each document once"):
                analysis()(run)


def test_groups_hold_every_module_once(pair: rp.Run) -> None:
    modules = pair.gradients.module
    groups = module_groups(modules, blocks=True)
    kinds = [groups[g] for g in ("embedding", "attention", "mlp", "norms", "unembedding")]
    assert (np.sum(kinds, axis=0) == 1).all()
    assert sum(groups[f"block {b}"].sum() for b in range(2)) == (modules["block"] >= 0).sum()
