"""Estimates: what is put into a dataset comes out of it, whatever its name; its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from recovery_probe.analyze import estimate
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.record.store import write_zarr


def dataset(seed: int) -> xr.Dataset:
    """Two estimates, one of an ill-chosen name, and two plain numbers that look like parts."""
    rng = np.random.default_rng(seed)
    value, p = rng.normal(size=(3, 2)), rng.uniform(size=2)
    found = xr.Dataset(coords={"run": ["cyclic", "shuffled", "other"], "epoch": [1, 2]})
    found["fall"] = ("epoch", rng.normal(size=2))
    found["fall_low"] = ("epoch", rng.normal(size=2))  # how low it falls: no bound of anything
    bounded = Estimate(value, value - 1, value + 2)
    estimate.put(found, "score", ("run", "epoch"), bounded, units="nats")
    estimate.put(found, "sea_high", "epoch", Estimate(value[0], p=p))
    return found


def test_what_is_put_is_got(tmp_path: Path) -> None:
    write_zarr(dataset(0), tmp_path / "one.zarr")
    with xr.open_zarr(tmp_path / "one.zarr") as stored:
        for found in (dataset(0), stored.load()):
            assert estimate.names(found) == ["score", "sea_high"]
            assert found.score.attrs["units"] == "nats"
            score = estimate.get(found, "score", run="shuffled", epoch=2)
            assert score.value == found.score.values[1, 1]
            assert (score.low, score.high) == (score.value - 1, score.value + 2)
            assert score.p is None
            whole = estimate.get(found, "score")
            assert whole[1, 1] == score
            np.testing.assert_array_equal(whole[1].low, found.score.values[1] - 1)
            assert estimate.get(found, "fall").parts == {}
    (record, *_) = estimate.records(dataset(0))["sea_high"]
    assert list(record) == ["epoch", "value", "p"]


def test_a_mean_of_one_document_has_no_interval() -> None:
    each = np.random.default_rng(0).normal(size=(7, 2))
    each[1:, 1] = np.nan
    found = estimate.of_mean(each, np.random.default_rng(1))
    assert found[0].value == pytest.approx(each[:, 0].mean())
    assert found[0].low < found[0].value < found[0].high
    assert str(found[1]) == f"{each[0, 1]:.2f} [interval not defined]"


def test_words() -> None:
    nan = float("nan")
    assert str(Estimate(0.416, 0.37, 0.484)) == "0.42 [0.37, 0.48]"
    assert str(Estimate(nan)) == "not defined"
    assert Estimate(0.5, p=0.0001).with_test() == "0.50 (p < 0.001)"
    assert Estimate(0.5, p=nan).with_test("+.1f") == "+0.5 (p not defined)"
    assert Estimate(nan, p=nan).with_test(undefined="T = 2") == "not defined (T = 2)"
    tested = Estimate(0.5, p=0.02, null=0.1, p_adjusted=0.06, n=5)
    assert tested.with_test() == "0.50 (0.10 under the null, p = 0.02, corrected p = 0.06, 5 seeds)"
    assert tested.cell == "0.5, null 0.1, p = 0.02, corrected p = 0.06, 5 seeds"
    assert Estimate(0.5, null=0.1).with_test() == "0.50 (0.10 under the null)"
    assert Estimate(0.5, 0.1, 1.0, p=0.02).cell == "0.5 [0.1, 1], p = 0.02"
    assert Estimate(nan, nan, nan).cell == "–"


@pytest.mark.parametrize(
    ("low", "high", "half", "above"),
    [
        (0.2, 0.4, 0.09, True),
        (-0.4, -0.2, 0.09, False),
        (-0.3, 0.4, 0.3, None),
        (-0.03, 0.03, 0.02, False),  # equal within .05: what was found is not there
        (0.01, 0.03, 0.009, None),  # there, and less than matters
    ],
)
def test_seeds_agree_with_a_finding(
    low: float, high: float, half: float, above: bool | None
) -> None:
    middle = (low + high) / 2
    low90, high90 = middle - half, middle + half
    several = Estimate(middle, low, high, n=5, low90=low90, high90=high90)
    assert several.agrees(1, 0.05) is above
    opposite = Estimate(-middle, -high, -low, n=5, low90=-high90, high90=-low90)
    assert opposite.agrees(-1, 0.05) is above
    assert Estimate(middle, low, high).agrees(1, 0.05) is None, "one run decides nothing"
    nan = float("nan")
    nothing = Estimate(nan, nan, nan, n=0, low90=nan, high90=nan)
    assert nothing.agrees(1, 0.05) is None
