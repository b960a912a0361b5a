"""What each of several players adds to what they make together: Shapley values. Of n players a
coalition is a number of n bits, bit i for player i."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

from recovery_probe.stats.inference import Floats, Ints


def shapley(values: Floats) -> Floats:
    """(n,) of the (2^n,) values of all coalitions: what a player adds on average over all orders in
    which they can come (Shapley 1953). They sum to what all have more than none."""
    players = len(values).bit_length() - 1
    coalitions = np.arange(len(values))
    sizes = np.bitwise_count(coalitions).astype(int)
    # The share of all orders in which a player comes right after a coalition of each size.
    share = np.array([1 / (players * comb(players - 1, size)) for size in range(players)])
    found = np.empty(players)
    for player in range(players):
        without = coalitions[coalitions >> player & 1 == 0]
        added = values[without | 1 << player] - values[without]
        found[player] = added @ share[sizes[without]]
    return found


def antithetic_orders(players: int, count: int, rng: np.random.Generator) -> Ints:
    """(count, n): orders of n players, each followed by the same backwards, so that who comes early
    in one comes late in the other (antithetic sampling; Mitchell et al. 2022). An even `count`."""
    drawn = np.stack([rng.permutation(players) for _ in range(count // 2)])
    return np.stack([drawn, drawn[:, ::-1]], axis=1).reshape(-1, players)


def added_in_order(value: Callable[[int], float], order: Ints) -> Floats:
    """(n,): what each player adds to those before it in an order, by the value of a coalition."""
    coalition, found = 0, np.empty(len(order))
    for player in order.tolist():
        found[player] = value(coalition | 1 << player) - value(coalition)
        coalition |= 1 << player
    return found


def shapley_of_orders(added: Floats) -> tuple[Floats, Floats]:
    """Of what (orders, n) each adds, in `antithetic_orders`: Shapley values, (n,), and the standard
    errors of drawing so few pairs of orders; NaN of one pair."""
    pairs = added.reshape(-1, 2, added.shape[-1]).mean(axis=1)
    sd = pairs.std(axis=0, ddof=1) if len(pairs) > 1 else np.full(pairs.shape[1], np.nan)
    return pairs.mean(axis=0), sd / np.sqrt(len(pairs))
