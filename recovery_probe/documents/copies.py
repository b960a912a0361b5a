"""Documents that are copies, or near copies, of one another."""

from __future__ import annotations

from collections import Counter, defaultdict

# A document is a near copy of another when NEAR of its runs of RUN tokens stand in it: about as
# many as are left when one token in five is changed, (4/5)⁵ = .33. Of the built-in documents at
# the quickstart's sizes, "break" shares .47 of its runs with "continue", and no other pair of
# different texts more than .23.
RUN, NEAR = 5, 1 / 3


class Copies:
    """Tells whether a document is a copy, or a near copy, of one taken before."""

    def __init__(self) -> None:
        self.taken: set[tuple[int, ...]] = set()
        self.holders: dict[tuple[int, ...], list[int]] = defaultdict(list)  # run -> who has it
        self.sizes: list[int] = []  # distinct runs of each

    def kind(self, ids: list[int]) -> str:
        """`duplicates`, `near_duplicates`, or nothing when the document is new."""
        if tuple(ids) in self.taken:
            return "duplicates"
        runs = _runs(ids)
        shared = Counter(other for run in runs for other in self.holders.get(run, ()))
        # Of the shorter of the two: a document may also be a piece of another.
        near = any(n >= NEAR * min(len(runs), self.sizes[other]) for other, n in shared.items())
        return "near_duplicates" if near else ""

    def add(self, ids: list[int]) -> None:
        runs = _runs(ids)
        for run in runs:
            self.holders[run].append(len(self.sizes))
        self.sizes.append(len(runs))
        self.taken.add(tuple(ids))


def _runs(ids: list[int]) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + RUN]) for i in range(max(1, len(ids) - RUN + 1))}
