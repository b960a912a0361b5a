"""Every analysis on plain least squares: documents that share half of their variance, that share
nothing, and the former in two random orders. What is planted is found, and nothing else is.

A fixed order is planted in the first two: updates go round with it even where documents have
nothing in common, and only two free orders have no cycle."""

from __future__ import annotations

from typing import Any

import pytest

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.analyze.calibration import Reshuffled
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.salient import salient
from recovery_probe.simulations.linear_documents import LinearDocuments

SHAPE: dict[str, Any] = {"documents": 20, "held_out": 3, "epochs": 6, "steps": 10, "seed": 3}

# Estimates of a run: in half shared at least, in nothing shared at most, and in two free orders at
# most (of its size).
FOUND = {
    "age_curve: score, curve": (0.6, 0.05, 0.3),
    "age_curve: matched_fall": (0.1, 0.01, 0.05),
    "age_curve: excess": (0.1, 0.01, 0.05),
    "recovery: difference": (0.3, 0.05, 0.2),
    "online_loss: mean": (0.03, 0.01, 0.1),
    "token_recovery: total_regained_difference": (0.1, 0.01, 0.05),
    "token_recovery: correlation": (0.4, 0.4, 0.4),
    "gradient_similarity: overall": (0.15, 0.05, 0.3),
    "gradient_similarity: near_minus_far": (0.1, 0.06, 0.15),
    "activation_similarity: growth": (0.05, 0.03, 0.3),
    "weight_cyclicity: cycle_share_difference": (0.3, 0.5, 0.05),
    "weight_cyclicity: order_difference": (0.5, 1.0, 0.1),
    "weight_residuals: stripe_difference": (0.5, 1.0, 0.15),
    "allocation: fall_difference, whole": (0.1, 0.01, 0.1),
    "allocation: fall_difference, predecessors": (0.05, 0.01, 0.1),
    "state_return: more_than_age, both": (0.2, 1.0, 1.0),  # exact wherever documents are linear
    "step_sizes: staircase_difference": (-0.2, 0.2, 0.2),  # nothing is planted of it anywhere
}
# Tests of a run: p in half shared, in nothing shared, in two free orders, are they below .05?
CALLED = {
    "gradient_similarity: distance_r": (True, False, False),
    "weight_cyclicity: period_share": (True, True, False),
    "weight_cyclicity: cycle_share": (True, True, False),
    "weight_cyclicity: order": (True, True, False),
    "weight_residuals: stripe": (True, True, False),
}
# What needs a network or a twin (it has tests of its own), and what gives no number.
LEFT_OUT = {
    *("pairwise_recovery", "linearised", "kernel_by_lag", "readout", "transplant"),
    *("twin_distance", "loss_curves"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Estimate]]:
    """The estimates of half shared, nothing shared and two free orders, by `analysis: name`."""
    out = tmp_path_factory.mktemp("planted")
    half = rp.simulate(LinearDocuments(share=0.5, **SHAPE), out / "half")
    nothing = rp.simulate(LinearDocuments(share=0.0, **SHAPE), out / "nothing")
    shuffles = rp.simulate(Reshuffled(share=0.5, **SHAPE), out / "shuffles")
    names = sorted({name.partition(":")[0] for name in (*FOUND, *CALLED)})
    return [
        {
            f"{name}: {what}": estimate
            for name in names
            for what, estimate in salient(_made(name)(run, *run.controls)).items()
        }
        for run in (half, nothing, shuffles)
    ]


def _made(name: str) -> Any:
    return plugins.made(plugins.find("analyses", name), {}, name)


def test_no_analysis_of_a_run_is_left_out() -> None:
    known = {name for name in plugins.installed("analyses") if _made(name).needs}
    assert {name.partition(":")[0] for name in FOUND} | LEFT_OUT == known


@pytest.mark.parametrize("name", FOUND)
def test_what_is_planted_is_found_and_nothing_else(
    name: str, found: list[dict[str, Estimate]]
) -> None:
    half, nothing, shuffles = (float(of[name].value) for of in found)
    least, most_of_nothing, most_of_shuffles = FOUND[name]
    assert half > least
    assert abs(nothing) < most_of_nothing
    assert abs(shuffles) < most_of_shuffles


@pytest.mark.parametrize("name", CALLED)
def test_a_test_calls_what_is_planted_alone(name: str, found: list[dict[str, Estimate]]) -> None:
    for of, called in zip(found, CALLED[name], strict=True):
        p = of[name].p
        assert p is not None
        assert (p < 0.05) == called


def test_no_interval_of_two_free_orders_leaves_out_what_they_have_none_of(
    found: list[dict[str, Estimate]],
) -> None:
    differences = {
        name: of
        for name, of in found[2].items()
        if "difference" in name or name.partition(" ")[2] in ("matched_fall", "gain", "excess")
        if of.low is not None and of.high is not None and of.low == of.low
    }
    wrong = [name for name, of in differences.items() if not of.low <= 0 <= of.high]
    assert len(differences) > 8
    assert len(wrong) <= 1  # of so many 95% intervals one may
