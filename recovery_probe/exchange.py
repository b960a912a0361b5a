"""The loss of a document under weights put together from two moments of a training: at its peak,
where the loss is highest in the wait, and at arrival, right before the document's turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from recovery_probe import stats
from recovery_probe.training import Training

Weights = Mapping[str, Tensor]  # by TransformerLens name
State = Callable[[str], Tensor]  # of a parameter, by its name: what it is there
Groups = Mapping[str, list[str]]  # a partition: name -> parameters
Numbers = dict[str, float]  # nats

PLACEBO_ORDERS = 4  # in which a group's random displacement comes after the weights of others


def exactly(groups: int, permutations: int) -> bool:
    """Whether the values of all coalitions take no more passes than so many orders do."""
    return 2**groups <= permutations * (groups - 1) + 2


def passes(partitions: Iterable[Groups], permutations: int) -> int:
    """At most how many passes of a document `Exchange.everything` takes."""
    total = 2 + 4 + 3 * 4  # the two moments, all weights, scales
    for count in map(len, partitions):
        sampled = permutations * (count - 1) + 2
        total += 2**count if exactly(count, permutations) else sampled
        total += count * (4 + min(PLACEBO_ORDERS, permutations))
    return total


def seconds_of_a_pass(training: Training) -> float:
    """Of one document."""
    training.model.train(False)
    with torch.no_grad():
        for _ in range(2):  # the first is slower
            begun = time.monotonic()
            training.losses(slice(0, 1)).sum().item()
    return time.monotonic() - begun


class Exchange:
    """Of one document, while its network has the weights of its arrival. They come back when this
    is left.

    All numbers are nats: restored, how much the loss at the peak falls when some of its weights
    become those of arrival; lost, how much the loss at arrival rises when some become those of the
    peak. Beside each stands a placebo, `…_random`: every parameter moved as far, by the 2-norm, in
    a random direction.
    """

    def __init__(
        self,
        training: Training,
        document: int,
        peak: Weights,
        rng: np.random.Generator,
        passed: Callable[[], object] = lambda: None,
    ) -> None:
        self.training, self.document, self.rng, self.passed = training, document, rng, passed
        self.parameters = training.model.parameters
        arrival = {name: p.detach().clone() for name, p in self.parameters.items()}
        peak = {name: value.to(training.model.device) for name, value in peak.items()}
        self.peak: State = peak.__getitem__
        self.arrival: State = arrival.__getitem__
        self.moving = {n for n in peak if not torch.equal(peak[n], arrival[n])}
        draws = torch.Generator().manual_seed(int(rng.integers(2**63)))
        self.random = {name: _direction(value, draws) for name, value in peak.items()}
        self.has: dict[str, State] = dict.fromkeys(arrival, self.arrival)

    def __enter__(self) -> Self:
        self.training.model.train(False)
        self.loss_at_peak, self.loss_at_arrival = self.loss(self.peak), self.loss(self.arrival)
        return self

    def __exit__(self, *_: object) -> None:
        self._put(dict.fromkeys(self.has, self.arrival))

    @property
    def bump(self) -> float:
        """From the peak to arrival."""
        return self.loss_at_peak - self.loss_at_arrival

    def loss(self, base: State, *swaps: tuple[Iterable[str], State]) -> float:
        """With the weights of a state but for those parameters that are of others."""
        wanted = dict.fromkeys(self.has, base)
        for names, state in swaps:
            wanted |= dict.fromkeys(names, state)
        self._put(wanted)
        with torch.no_grad():
            found = self.training.losses(slice(self.document, self.document + 1)).item()
        self.passed()
        return found

    @torch.no_grad()
    def _put(self, wanted: Mapping[str, State]) -> None:
        """Write what is not there yet."""
        for name, state in wanted.items():
            if self.has[name] is not state:
                self.parameters[name].copy_(state(name))
                self.has[name] = state

    def swapped(
        self, names: Iterable[str], forward: State | None = None, back: State | None = None
    ) -> Numbers:
        """restored, with these parameters of the state `forward` (arrival) at the peak; lost, with
        those of `back` (the peak) at arrival; and their placebos."""
        names, forward, back = list(names), forward or self.arrival, back or self.peak
        away, home = self.displaced(self.peak, forward), self.displaced(self.arrival, back)
        return {
            "restored": self.loss_at_peak - self.loss(self.peak, (names, forward)),
            "restored_random": self.loss_at_peak - self.loss(self.peak, (names, away)),
            "lost": self.loss(self.arrival, (names, back)) - self.loss_at_arrival,
            "lost_random": self.loss(self.arrival, (names, home)) - self.loss_at_arrival,
        }

    def displaced(self, base: State, target: State) -> State:
        """A state as far from `base` as `target` is, parameter by parameter, in a random direction,
        which is the same for every target."""

        def state(name: str) -> Tensor:
            start = _wide(base(name))
            away = torch.linalg.vector_norm(_wide(target(name)) - start)
            return (start + away * self.random[name]).to(base(name))

        return state

    def scaled(self, direction: State, size: State) -> State:
        """The directions of one state with the 2-norms of another, parameter by parameter."""

        def state(name: str) -> Tensor:
            start = _wide(direction(name))
            own, other = (torch.linalg.vector_norm(w) for w in (start, _wide(size(name))))
            return (start * torch.where(own > 0, other / own, 1.0)).to(direction(name))

        return state

    def scales(self, matrices: list[str], gains: list[str]) -> dict[str, Numbers]:
        """Of the norms of all weight matrices alone, of their directions alone, and of the gains of
        normalisations."""
        ours, theirs = self.peak, self.arrival
        norms, directions = self.scaled(ours, theirs), self.scaled(theirs, ours)
        return {
            "matrix norms": self.swapped(matrices, norms, directions),
            "matrix directions": self.swapped(matrices, directions, norms),
            "norm gains": self.swapped(gains),
        }

    def shared(self, groups: Groups, permutations: int) -> dict[str, Numbers]:
        """Of every group of a partition: as `swapped`; `shapley`, what it restores on average over
        all orders in which groups can become those of arrival; exactly, where that takes no more
        passes than so many `permutations`, which are drawn otherwise; `shapley_random`, with the
        placebo in its place, in a few orders; `sampling_error`, of the drawing."""
        names, count = list(groups.values()), len(groups)
        moving = sum(1 << i for i, own in enumerate(names) if self.moving.intersection(own))
        orders = stats.antithetic_orders(count, permutations, self.rng)
        random = self.displaced(self.peak, self.arrival)
        known = {0: 0.0}

        def of(coalition: int) -> tuple[list[str], State]:
            here = [own for i, own in enumerate(names) if coalition >> i & 1]
            return [name for own in here for name in own], self.arrival

        def value(coalition: int) -> float:
            coalition &= moving  # a group that is as it was adds nothing
            if coalition not in known:
                known[coalition] = self.loss_at_peak - self.loss(self.peak, of(coalition))
            return known[coalition]

        def placebo(order: stats.Ints, group: int) -> float:
            before = sum(1 << int(i) for i in order[: list(order).index(group)])
            loss = self.loss(self.peak, of(before & moving), (names[group], random))
            return self.loss_at_peak - loss - value(before)

        if exactly(count, permutations):
            # In this order (Gray's) each differs from the last by one group: little is copied.
            for i in range(2**count):
                value(i ^ i >> 1)
            shares = stats.shapley(np.array([value(c) for c in range(2**count)]))
            error = np.zeros(count)
        else:
            shares, error = stats.shapley_of_orders(
                np.stack([stats.added_in_order(value, o) for o in orders])
            )
        few = orders[:PLACEBO_ORDERS]
        return {
            name: {
                **self.swapped(own),
                "shapley": float(shares[i]),
                "shapley_random": float(np.mean([placebo(order, i) for order in few])),
                "sampling_error": float(error[i]),
            }
            for i, (name, own) in enumerate(groups.items())
        }

    def everything(
        self, partitions: Mapping[str, Groups], gains: list[str], permutations: int
    ) -> dict[str, dict[str, Numbers]]:
        """What is put in, by what it is among: `all` weights, the groups of each partition, and
        `scales`; `gains` are the weights of normalisations."""
        whole = self.swapped(self.has)
        alone = {"shapley": whole["restored"], "shapley_random": whole["restored_random"]}
        matrices = [name for name, p in self.parameters.items() if p.ndim > 1]
        return {
            "all": {"all": {**whole, **alone, "sampling_error": 0.0}},
            **{name: self.shared(groups, permutations) for name, groups in partitions.items()},
            "scales": self.scales(matrices, gains),
        }


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: differences and sizes of weights."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _direction(like: Tensor, draws: torch.Generator) -> Tensor:
    """Of 2-norm 1, in float32."""
    drawn = torch.randn(like.shape, generator=draws)
    return (drawn / torch.linalg.vector_norm(drawn)).to(like.device)
