"""Directions on a circle."""

from __future__ import annotations

import numpy as np

from recovery_probe.stats.inference import Floats


def resultant(phases: Floats) -> tuple[float, float]:
    """Length, 0 to 1, and direction, in radians from -π to π, of the mean of unit vectors in these
    directions (Mardia and Jupp, Directional Statistics, 2.2)."""
    mean = np.exp(1j * np.asarray(phases)).mean()
    return float(np.abs(mean)), float(np.angle(mean))


def rayleigh(phases: Floats) -> float:
    """P-value of Rayleigh's test that n directions are uniform, independent of one another:
    exp(√(1 + 4n + 4(n² − (nR)²)) − (1 + 2n)), good to three digits from n = 10 (Zar, Biostatistical
    Analysis, 27.4)."""
    n, length = len(phases), resultant(phases)[0] * len(phases)
    return float(np.exp(np.sqrt(1 + 4 * n + 4 * (n**2 - length**2)) - (1 + 2 * n)))


def chance(n: int) -> float:
    """Mean length of the resultant of n uniform directions, √π / (2 √n), good to a few percent
    from n = 5."""
    return float(np.sqrt(np.pi / n) / 2)
