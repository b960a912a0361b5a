"""Subspaces of the space of all weights: those of a few vectors in it, gradients or updates.

n vectors are `Vectors`: TransformerLens name of a parameter -> (n, *its shape), all of the same
names. All is worked out from their inner products, (n, n): no matrix is of the weights' size on
both sides, and of vectors that fill most of a memory only a piece at a time is made float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from recovery_probe.errors import InputError
from recovery_probe.stats import Floats

Vectors: TypeAlias = Mapping[str, Tensor]

ROTATIONS = 100  # of which the best is taken
DEPENDENT = 1e-9  # of an eigenvalue, as a share of the largest: there is no such direction
FLAT = "vector ... -> vector (...)"
PIECE = 1 << 18  # numbers of each vector


def gram(vectors: Vectors, others: Vectors | None = None) -> Floats:
    """(n, m): inner products of n vectors and m others, or of one another, in float64."""
    others = vectors if others is None else others
    pieces = (zip(_pieces(vectors[name]), _pieces(others[name]), strict=True) for name in vectors)
    products = (a.double() @ b.double().T for pairs in pieces for a, b in pairs)
    return np.asarray(sum(products, torch.zeros(())).cpu().numpy())


def combined(vectors: Vectors, weights: Floats) -> dict[str, Tensor]:
    """k sums of n vectors, `weights` (k, n) of each, in float32 at least."""
    found = {}
    for name, each in vectors.items():
        wide = torch.promote_types(each.dtype, torch.float32)
        sums = each.new_empty((len(weights), *each.shape[1:]), dtype=wide)
        factors = torch.as_tensor(weights).to(each.device)
        for into, piece in zip(_pieces(sums), _pieces(each), strict=True):
            into.copy_(factors @ piece.double())
        found[name] = sums
    return found


def directions_of(inner: Floats) -> tuple[Floats, Floats]:
    """Of n vectors' inner products: (k,) eigenvalues above 0, the largest first, and (k, n) the
    sums of the vectors that are orthonormal directions of their span, one for each."""
    values, vectors = np.linalg.eigh(inner)
    there = values > DEPENDENT * values.max(initial=0.0)
    values, vectors = values[there][::-1], vectors[:, there][:, ::-1]
    return values, (vectors / np.sqrt(values)).T


def principal(vectors: Vectors, count: int) -> dict[str, Tensor]:
    """The `count` leading principal directions of vectors made of length 1, not centred: the
    orthonormal ones that have the largest share of their energy. Vectors of 0 do not count.

    Raises `InputError` where they span fewer directions."""
    inner = gram(vectors)
    lengths = np.sqrt(inner.diagonal())
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    _, weights = directions_of(inner * np.outer(scale, scale))
    if len(weights) < count:
        raise InputError(
            f"{len(inner)} vectors span {len(weights)} directions, and {count} were asked for"
        )
    return combined(vectors, weights[:count] * scale)


def removed(directions: Vectors, vectors: Vectors) -> float:
    """The share of the vectors' energy, the sum of their squared lengths, that lies in the span of
    directions: what goes when these are taken away. Both named alike; the directions need not be
    orthonormal, but independent."""
    inside = gram(directions, vectors)  # (k, n)
    along = np.linalg.solve(gram(directions), inside)
    pieces = (piece.double() for each in vectors.values() for piece in _pieces(each))
    whole = sum(float(piece.pow(2).sum()) for piece in pieces)
    return float((inside * along).sum() / whole)


def placebo(vectors: Vectors, share: float, rng: np.random.Generator) -> dict[str, Tensor]:
    """Orthonormal random directions, as many as take away that share of the vectors' energy.

    An isotropic direction in the space of all weights takes away next to nothing of an update, and
    flatters whatever it is held against. So they are drawn in the span of the vectors; the last one
    leans out of it, to where the vectors have nothing, as far as the share asks.
    """
    values, basis = directions_of(gram(vectors))
    rows = taking(values / values.sum(), share, rng)
    one = isotropic(vectors, 1, rng)
    outside = _minus(one, combined(vectors, gram(one, vectors) @ basis.T @ basis))
    lean = np.sqrt(np.clip(1 - (rows**2).sum(axis=1, keepdims=True), 0, None) / gram(outside))
    found = combined(vectors, rows @ basis)
    for name, each in found.items():
        each += combined({name: outside[name]}, lean)[name]
    return found


def taking(energies: Floats, share: float, rng: np.random.Generator) -> Floats:
    """(k, m) orthogonal rows of length 1, the last one shorter: random directions of a space whose
    m axes have these `energies`, which sum to 1, as many as take away `share`. Of many rotations
    the one that whole directions come nearest with."""
    m, best = len(energies), (np.inf, np.empty((0, 0)), 0)
    for _ in range(ROTATIONS):
        turned = np.linalg.qr(rng.normal(size=(m, m)))[0].T
        sums = np.concatenate([[0.0], np.cumsum(turned**2 @ energies)])
        whole = int(np.searchsorted(sums, share, side="right")) - 1
        best = min(best, (share - sums[whole], turned, whole), key=lambda each: each[0])
    lacking, turned, whole = best
    if whole == m or lacking < DEPENDENT * share:
        return turned[:whole]
    last = turned[whole]
    return np.vstack([turned[:whole], np.sqrt(lacking / (last**2 @ energies)) * last])


def isotropic(like: Vectors, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Random directions in the space of all weights, every one alike likely: nearly orthonormal in
    a large one."""
    found = {}
    for name, each in like.items():
        drawn = rng.standard_normal((count, *each.shape[1:]), dtype=np.float32)
        found[name] = torch.from_numpy(drawn).to(torch.promote_types(each.dtype, torch.float32))
    return found


def _pieces(vectors: Tensor) -> Iterator[Tensor]:
    """(n, some) views of n vectors, which together are all of them."""
    yield from rearrange(vectors, FLAT).split(PIECE, dim=1)


def _minus(a: Vectors, b: Vectors) -> dict[str, Tensor]:
    return {name: each - b[name] for name, each in a.items()}
