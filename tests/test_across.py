"""Several seeds made one, and several analyses corrected for one another."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from conftest import cut
from matplotlib.figure import Figure
from recovery_probe_analyses.recovery import Recovery
from test_estimate import dataset as of_seed

import recovery_probe as rp
from recovery_probe import across, stats
from recovery_probe.analyze import analyze, estimate, multiplicity, plots
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.config import changed, to_toml


def one(
    value: object, dims: tuple[str, ...] = (), name: str = "score", **parts: object
) -> xr.Dataset:
    """A dataset of one estimate, `name`."""
    found = xr.Dataset()
    attrs = {k: parts.pop(k) for k in ("alternative", "mean_of") if k in parts}
    estimate.put(found, name, dims, Estimate(value, **parts), **attrs)
    return found


def test_seeds_become_mean_spread_and_interval() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))

    def of_row(row: np.ndarray, p: float) -> xr.Dataset:
        dataset = xr.Dataset(
            {"curve": ("epoch", row**2), "reason": ("epoch", np.array([0, 1, 2]))},
            attrs={"unit": "documents"},
        )
        score = Estimate(row, row - 9, row + 9, p=np.full(3, p), null=np.full(3, 0.25))
        estimate.put(dataset, "score", "epoch", score)
        return dataset

    ps = [0.1, 0.2, 0.3, 0.4]
    found = across([of_row(row, p) for row, p in zip(values, ps, strict=True)])
    low, high = scipy.stats.t.interval(
        0.95, 3, loc=values.mean(axis=0), scale=scipy.stats.sem(values, axis=0)
    )
    np.testing.assert_allclose(found.score, values.mean(axis=0))
    np.testing.assert_allclose(found.score_sd, values.std(axis=0, ddof=1))
    np.testing.assert_allclose(found.score_low, low)
    np.testing.assert_allclose(found.score_high, high)
    np.testing.assert_allclose(found.score_each, values)
    np.testing.assert_allclose(found.curve, (values**2).mean(axis=0))
    p = scipy.stats.ttest_1samp(values - 0.25, 0, axis=0).pvalue
    np.testing.assert_allclose(found.score_p, p)
    np.testing.assert_allclose(found.score_p_adjusted, stats.holm(p))
    np.testing.assert_allclose(found.score_null, 0.25)
    assert found.reason.values.tolist() == [0, 1, 2]
    assert found.attrs["unit"] == "4 seeds"


def test_seeds_are_joined_at_equal_places_alone() -> None:
    def placed(
        runs: list[str], times: list[int], values: list[float], **counts: list[int]
    ) -> xr.Dataset:
        arrays = {name: ("run", count) for name, count in counts.items()}
        dataset = xr.Dataset(arrays, coords={"run": runs, "time": times})
        row = np.tile(values, (len(runs), 1))
        score = Estimate(row, np.zeros_like(row), np.ones_like(row))
        estimate.put(dataset, "score", ("run", "time"), score)
        for name in counts:
            dataset[name].attrs["of_seeds"] = name.replace("_", " ")
        return dataset

    names = ["cyclic", "shuffled (a)"]
    first = placed(names, [5, 10], [1.0, np.nan], sum=[0, 3], each=[0, 3])
    second = placed(["cyclic", "shuffled (b)"], [5, 10], [3.0, 4.0], sum=[0, 3], each=[0, 3])
    found = across([first, second])
    # Counts are summed, equal or not.
    assert found["sum"].values.tolist() == [0, 6]
    assert found["each"].values.tolist() == [[0, 3], [0, 3]]
    assert found.score.values.tolist() == [[2, 4], [2, 4]]
    assert found.score_n.values.tolist() == [[2, 1], [2, 1]]
    assert "fewer where _n says so" in found.attrs["interval"]
    assert found.attrs["seeds"] == ["seed 0", "seed 1"]
    assert found.attrs["seeds_left_out"] == ["seed 0: no value, somewhere, of score"]
    records = estimate.records(found)["score"]
    assert [r["n"] for r in records] == [2, 1, 2, 1]
    for other, message in (
        (placed(names[::-1], [5, 10], [1.0, 2.0], sum=[0, 3], each=[0, 3]), "run is .*cyclic"),
        (
            placed(names, [5, 15], [1.0, 2.0], sum=[0, 3], each=[0, 3]),
            r"time is \[5, 10\] and \[5, 15\]",
        ),
        (
            placed(names, [5], [1.0], sum=[0, 3], each=[0, 3]),
            r"shape \(score: \(2, 2\), \(2, 1\)\)",
        ),
        (placed(names, [5, 10], [1.0, 2.0], sum=[0, 3]), "differ: each"),
    ):
        with pytest.raises(rp.InputError, match=message):
            across([first, other])


def test_seeds_of_estimates_by_hand() -> None:
    """Nothing is read out of names: a number that is called like a part is averaged like others."""
    many = [of_seed(seed) for seed in range(4)]
    many[2].score[0, 0] = np.nan
    found = across(many)
    each = np.stack([d.score.values for d in many])
    score = estimate.get(found, "score")
    np.testing.assert_array_equal(score.each, each)
    np.testing.assert_allclose(score.value, np.nanmean(each, axis=0))
    np.testing.assert_allclose(score.sd, np.nanstd(each, axis=0, ddof=1))
    assert score.n.tolist() == [[3, 4], [4, 4], [4, 4]]
    mean, half = each[:, 1, 1].mean(), scipy.stats.sem(each[:, 1, 1]) * scipy.stats.t.ppf(0.975, 3)
    assert (score[1, 1].low, score[1, 1].high) == pytest.approx((mean - half, mean + half))
    assert score.over == "4 seeds"
    drawn = np.array([d.sea_high.values[1] for d in many])
    sea = estimate.get(found, "sea_high", epoch=2)
    assert sea.p == pytest.approx(scipy.stats.ttest_1samp(drawn, 0).pvalue)
    assert sea.p_adjusted == pytest.approx(stats.holm(found.sea_high_p.values)[1])
    assert sea.detectable == pytest.approx(stats.detectable(4) * drawn.std(ddof=1))
    bounds = scipy.stats.t.interval(0.9, 3, drawn.mean(), scipy.stats.sem(drawn))
    assert (sea.low90, sea.high90) == pytest.approx(bounds)
    np.testing.assert_allclose(found.fall_low, np.mean([d.fall_low for d in many], axis=0))
    assert "fall_sd" not in found


def test_seeds_that_point_two_ways_are_no_finding() -> None:
    """By Fisher's method these two are p = .0026."""
    found = across([one(-0.3, p=0.017), one(0.3, p=0.017)])
    assert found.score == 0
    assert found.score_p == pytest.approx(1)


def test_five_seeds_of_which_three_have_no_value_are_two() -> None:
    values = [0.3, np.nan, np.nan, 0.4, np.nan]
    found = across([one(v, low=v, high=v) for v in values])
    score = estimate.get(found, "score")
    assert score.n == 2
    assert str(score) == "0.35 [-0.29, 0.99; 2 seeds]"
    assert score.cell.endswith("2 seeds")
    lacking = [f"seed {s}: no value, somewhere, of score" for s in (1, 2, 4)]
    assert found.attrs["seeds_left_out"] == lacking


def test_what_every_seed_shows_by_chance_is_no_finding() -> None:
    """A share that is .2 by chance: its interval lies above 0 every time. The test against its null
    holds its rate; planted, it finds it."""
    rng = np.random.default_rng(0)
    null = rng.uniform(0.19, 0.21, (5, 600))
    for shift, low, high in ((0.0, 0.03, 0.07), (0.2, 0.9, 1.0)):
        values = null + shift + rng.normal(0, 0.08, (5, 600))
        seeds = [
            one(v, ("draw",), p=np.ones(600), null=n, alternative="greater")
            for v, n in zip(values, null, strict=True)
        ]
        found = estimate.get(across(seeds), "score")
        assert np.mean(found.low > 0) > 0.85
        assert low <= np.mean(found.p < 0.05) <= high
        np.testing.assert_allclose(found.null, null.mean(axis=0))
        np.testing.assert_array_equal(found.null_each, null)


def test_a_null_without_a_test_is_tested_over_seeds() -> None:
    """In one run it could not be: too few cycles."""
    values = [0.9, 1.0, 1.1, 0.8]
    found = across([one(v, null=0.0) for v in values])
    assert found.score_p == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    assert estimate.names(found) == ["score"]


def test_a_control_is_no_further_try() -> None:
    """Corrected for the groups of one run."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 3, 2))
    seeds = [one(v, ("group", "run"), null=np.zeros((3, 2))) for v in values]
    found = across(seeds)
    p = scipy.stats.ttest_1samp(values, 0).pvalue
    expected = np.stack([stats.holm(p[:, 0]), stats.holm(p[:, 1])], axis=1)
    np.testing.assert_allclose(found.score_p_adjusted, expected)


def test_decisions_over_seeds() -> None:
    """The interval, and two one-sided tests against the bound, agree with SciPy's."""
    rng = np.random.default_rng(0)
    words = ("more than it", "less than it", 0.1, "nats")
    said = set()
    for mean, sd in ((0.3, 0.1), (-0.3, 0.1), (0.0, 0.03), (0.03, 0.01), (0.1, 0.3)):
        values = mean + sd * scipy.stats.zscore(rng.normal(size=6), ddof=1)
        text = estimate.get(across([one(v, low=v, high=v) for v in values]), "score").decided(
            *words
        )
        differs = scipy.stats.ttest_1samp(values, 0).pvalue < 0.05
        within = (
            max(
                scipy.stats.ttest_1samp(values, -0.1, alternative="greater").pvalue,
                scipy.stats.ttest_1samp(values, 0.1, alternative="less").pvalue,
            )
            < 0.05
        )
        assert ("than it" in text) == differs
        assert (text.startswith("equal within ±0.1 nats") or "by less than 0.1" in text) == within
        assert ("undecided" in text) == (not differs and not within)
        said.add(text)
    assert "more than it, yet by less than 0.1 nats" in said
    assert "less than it" in said
    assert len(said) == 5


def test_no_seed_stands_for_more_than_one_run() -> None:
    one_run = Estimate(0.5, 0.4, 0.6)
    assert one_run.decided("m", "l", 0.05) == "spread over documents; one run decides nothing"
    assert Estimate(0.5, 0.4, 0.6, over="one run").decided("m", "l", 0.05) == (
        "one run decides nothing"
    )
    same = estimate.get(across([one(0.5, low=0, high=1)] * 3), "score")
    assert same.decided("m", "l", 0.05) == "nothing can be said without an interval"
    missing = estimate.get(across([one(np.nan, low=0, high=1)] * 3), "score")
    assert missing.decided("m", "l", 0.05) == "nothing can be said"


def test_variances_of_seeds_and_documents_stand_beside_a_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 2, 7)) + rng.normal(size=(4, 2, 1))

    def seed(s: int, digest: str) -> xr.Dataset:
        mean = values[s].mean(axis=1)
        found = one(mean, ("epoch",), low=mean - 1, high=mean + 1, mean_of="each")
        found["each"] = (("document", "epoch"), values[s].T)
        return found.assign_attrs(documents_digest=digest)

    for digests, crossed in (("aaaa", True), ("aaab", False)):
        found = across([seed(s, digest) for s, digest in enumerate(digests)])
        for epoch in (0, 1):
            expected = stats.variance_components(values[:, epoch], crossed)
            assert found.score_seed_variance[epoch] == pytest.approx(expected["seed"])
            assert found.score_document_variance[epoch] == pytest.approx(expected["document"])
            assert found.score_effective_documents[epoch] == pytest.approx(expected["effective"])
        assert ("documents_digest" in found.attrs) == crossed


def test_a_seed_that_got_less_far_is_left_out_and_named() -> None:
    whole = [one(np.full(3, float(v)), ("epoch",), null=np.zeros(3)) for v in range(3)]
    short = one(np.ones(2), ("epoch",), null=np.zeros(2))
    found = across([whole[0], short, *whole[1:]], ["seeds/9: no gradients"])
    assert found.score_n.values.tolist() == [3, 3, 3]
    assert found.attrs["unit"] == "3 seeds"
    assert found.attrs["seeds"] == ["seed 0", "seed 2", "seed 3"]
    assert found.attrs["seeds_left_out"] == [
        "seeds/9: no gradients",
        "seed 1: has 2 of 3 epoch",
    ]
    with pytest.raises(rp.InputError, match="have all of the runs got as far"):
        across([whole[0], short])


def reseeded(run: rp.Run, path: Path, seed: int) -> rp.Run:
    """A copy that says it has another seed."""
    shutil.copytree(run.path, path)
    (path / "config.toml").write_text(to_toml(changed(run.config, seed=seed)))
    return rp.open_run(path)


def test_seeds_that_did_not_get_there_are_named(pair: rp.Run, tmp_path: Path) -> None:
    """One killed in epoch 3, one in epoch 1, which has no score at all."""
    runs = [reseeded(pair, tmp_path / str(s), s) for s in range(4)]
    runs[2] = cut(runs[2], tmp_path / "2 cut", 11)
    runs[3] = cut(runs[3], tmp_path / "3 cut", 2)

    class Late(Recovery):
        def __call__(self, *runs: rp.Run) -> xr.Dataset:
            if runs[0].episodes_done < 5:
                raise rp.Missing(f"{runs[0].path}: too early")
            return super().__call__(*runs)

    out = tmp_path / "out"
    found = analyze(runs, analyses=[Late], out=out)
    with xr.open_zarr(out / "analyses" / "recovery.zarr") as stored:
        assert stored.attrs["seeds"] == [str(r.path) for r in runs[:3]]
        late, cut_short, *_ = stored.attrs["seeds_left_out"]
        assert late == f"{runs[3].path}: too early"
        assert cut_short == f"{runs[2].path}: killed after 11 of 15 episodes"
        n = stored.score_n.sel(reading="per_document").isel(run=0).values.tolist()
        assert n[0] >= n[1]
        assert stored.attrs["unit"] == "3 seeds"
    verdict = found["recovery"]["verdict"]
    assert verdict.startswith("Seeds that do not count, or not everywhere: ")
    assert "killed after 11 of 15" in verdict
    with pytest.raises(rp.Missing, match="too early"):
        analyze(runs[2:], analyses=[Late], out=out)


@dataclass(frozen=True)
class OfScore(rp.Analysis):
    name, question, null, blind_spot = "one", "?", "none", "all"
    tested = "score"
    which: str = ""

    def plot(self, dataset: xr.Dataset) -> Figure:
        return plots.figure()[0]


def test_analyses_are_corrected_for_one_another() -> None:
    """The run's own smallest p enters, and all of that estimate grow by one factor."""
    runs = {"run": ["cyclic", "shuffled"]}
    a = one(np.zeros((2, 2)), ("run", "group"), p=np.array([[0.01, 0.3], [0.001, 0.9]]))
    b = one(np.zeros(2), ("group",), p=np.array([0.015, 0.4]), p_adjusted=np.array([0.02, 0.5]))
    c = one(0.0, p=0.015)
    d = one(0.0, name="other", p=1e-9)
    e = one(np.nan, p=np.nan)
    datasets = {
        OfScore(which=w): x
        for w, x in zip("abcde", (a.assign_coords(runs), b, c, d, e), strict=True)
    }
    multiplicity.correct(datasets)
    found = list(datasets.values())
    # Smallest: .02 (of two groups), .02, .015; of three analyses, so .045 each.
    np.testing.assert_allclose(found[0].score_p_adjusted, [[0.045, 0.675], [0.0045, 1]])
    np.testing.assert_allclose(found[1].score_p_adjusted, [0.045, 1])
    np.testing.assert_allclose(found[2].score_p_adjusted, 0.045)
    np.testing.assert_allclose(found[0].score_p, a.score_p)
    assert [x.attrs.get("holm") for x in found] == ["Holm over 3 analyses"] * 3 + [None] * 2
    alone = {OfScore(): one(0.0, p=0.04)}
    multiplicity.correct(alone)
    assert "score_p_adjusted" not in alone[OfScore()]
