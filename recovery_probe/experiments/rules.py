"""What each explanation of recovery predicts, written down before looking, and when a number
supports it or contradicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

INF = float("inf")
Word = Literal["supported", "contradicted", "undecided", "not measured"]
CLAIMS = {
    "H1": "features are learned so that neighbours align",
    "H2": "a shared state returns with the cycle; a fixed kernel suffices",
    "H3": "savings, whatever the order",
    "H4": "temperature or bias of the readout",
    "H5": "norms and scale of the weights",
    "H6": "memory of the optimizer",
    "H7": "relief of interference that the order itself caused",
    "H8": "a clock in the weights, and no cue by neighbours",
}


@dataclass(frozen=True)
class Rule:
    """A prediction: the interval of a measure lies where it supports, or where it contradicts, or
    decides nothing."""

    hypothesis: str
    part: str  # the analysis or experiment that measures it
    measure: str
    supports: tuple[float, float]
    contradicts: tuple[float, float]

    def decide(self, low: float, high: float) -> Word:
        """What an interval says."""
        if not (np.isfinite(low) and np.isfinite(high)):
            return "not measured"
        for word, (least, most) in (
            ("supported", self.supports),
            ("contradicted", self.contradicts),
        ):
            if least <= low and high <= most:
                return word  # type: ignore[return-value]
        return "undecided"


RULES = (
    # Features that are learned early and then kept are missed by a kernel held from the start, and
    # by no later one.
    Rule(
        "H1", "linearised", "score with the kernel held from the start, Q", (-INF, 0.5), (0.9, INF)
    ),
    Rule("H1", "kernel_by_lag", "growth of the neighbours' kernel", (0, INF), (-INF, 0)),
    Rule("H2", "linearised", "score with the kernel held later on, Q", (0.9, 1.1), (-INF, 0.5)),
    Rule("H2", "state_return", "R² that the state adds to age", (0, INF), (-INF, 0)),
    Rule(
        "H2", "remove_subspace", "recovery beyond a placebo's that goes", (0.25, INF), (-INF, 0.1)
    ),
    Rule("H3", "age_curve", "matched fall, run minus control", (-0.05, 0.05), (0.05, INF)),
    Rule(
        "H4",
        "readout",
        "recovery left with temperature and bias set right",
        (-INF, 0.5),
        (0.75, INF),
    ),
    Rule("H5", "transplant", "share that norms alone restore", (0.5, INF), (-INF, 0.25)),
    Rule("H6", "optimizer_memory", "recovery left without memory", (-INF, 0.5), (0.75, INF)),
    Rule("H7", "age_curve", "excess as a share of the matched fall", (0.5, INF), (-INF, 0.1)),
    Rule(
        "H8",
        "clock_or_cue",
        "recovery on fresh documents, of that in the same order",
        (0.5, INF),
        (-INF, 0.25),
    ),
)


def together(words: Sequence[Word]) -> Word:
    """What several predictions of one explanation come to: one that fails contradicts it, and it is
    supported where all hold."""
    if "contradicted" in words:
        return "contradicted"
    known = [word for word in words if word != "not measured"]
    if not known:
        return "not measured"
    return "supported" if len(known) == len(words) and set(known) == {"supported"} else "undecided"
