"""Laws of the random projection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery_probe.sketch import FIRST, ModuleSketches, Sketch, signs

LENGTHS = st.one_of(st.integers(1, 600), st.integers(FIRST - 2, 3 * FIRST))


def vector(length: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=length))


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 200), st.floats(-3, 3), st.integers(0, 2**31))
def test_linear(length: int, size: int, scale: float, seed: int) -> None:
    sketch = Sketch("w", length, size)
    x, y = vector(length, seed), vector(length, seed + 1)
    torch.testing.assert_close(sketch(scale * x + y), scale * sketch(x) + sketch(y))


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 200), st.data())
def test_pieces_add_up_to_the_whole(length: int, size: int, data: st.DataObject) -> None:
    sketch, x = Sketch("w", length, size), vector(length, 0)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=4)))
    edges = [0, *cuts, length]
    pieces = [sketch(x[a:b], offset=a) for a, b in itertools.pairwise(edges) if b > a]
    torch.testing.assert_close(sum(pieces), sketch(x))


@pytest.mark.parametrize("length", [300, 3 * FIRST + 5])
def test_brute_force(length: int) -> None:
    """Every coordinate's sign and place, written out."""
    size, x = 7, vector(length, 3)
    out = x
    for key, k in [("0/w/first", FIRST), ("0/w", size)] if length > FIRST else [("0/w", size)]:
        sign = signs(key, -(-len(out) // k)).double()
        folded = torch.zeros(k, dtype=torch.float64)
        for i, value in enumerate(out.tolist()):
            folded[i % k] += value * sign[i // k]
        out = folded
    torch.testing.assert_close(Sketch("w", length, size)(x), out)


def inner_products(length: int, size: int, seeds: int) -> tuple[np.ndarray, float, float]:
    """Sketched inner products over seeds, the exact one, and |x||y|."""
    x = vector(length, 1)
    y = 0.5 * x + vector(length, 2)
    found = []
    for seed in range(seeds):
        sketch = Sketch("w", length, size, seed)
        found.append(float(sketch(x) @ sketch(y)))
    return np.array(found), float(x @ y), float(x.norm() * y.norm())


@pytest.mark.parametrize("length", [FIRST, 2 * FIRST + 100])
def test_inner_products_are_unbiased_with_error_one_over_root_k(length: int) -> None:
    errors = {}
    for size in (31, 127, 509):
        found, exact, scale = inner_products(length, size, 300)
        errors[size] = np.sqrt(np.mean((found - exact) ** 2)) / scale
        standard_error = found.std() / np.sqrt(len(found))
        assert abs(found.mean() - exact) < 4 * standard_error
        assert errors[size] < 1.6 / np.sqrt(size)
    assert errors[31] / errors[509] == pytest.approx((509 / 31) ** 0.5, rel=0.35)


def test_signs_are_fair_independent_and_the_same_everywhere() -> None:
    a, b = signs("0/a", 100_001), signs("0/b", 100_001)
    assert set(a.unique().tolist()) == {-1.0, 1.0}
    assert abs(a.mean()) < 0.02
    assert abs((a * b).mean()) < 0.02
    assert torch.equal(signs("0/a", 64), a[:64])
    # Written down once: a change of these would make old and new sketches incomparable.
    assert "".join("+" if s > 0 else "-" for s in signs("0/a", 16).tolist()) == EXPECTED


EXPECTED = "+-++++--++---+--"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu() -> None:
    x = vector(3 * FIRST, 0)
    there = Sketch("w", len(x), 127)(x.cuda()).cpu()
    torch.testing.assert_close(there, Sketch("w", len(x), 127)(x))


def test_a_modules_sketch_is_of_weight_and_bias_together() -> None:
    tensors = {"a.weight": vector(500, 0).view(50, 10), "a.bias": vector(50, 1)}
    tensors |= {"b.weight": vector(300, 2)}
    sketches = ModuleSketches(tensors, 31)
    sketched, norm = sketches(tensors)
    assert sketches.modules == ["a", "b"]
    expected = Sketch("a.weight", 500, 31)(tensors["a.weight"])
    expected = expected + Sketch("a.bias", 50, 31)(tensors["a.bias"])
    torch.testing.assert_close(sketched[0], expected)
    both = torch.cat([tensors["a.weight"].flatten(), tensors["a.bias"]])
    torch.testing.assert_close(norm, torch.stack([both.norm(), tensors["b.weight"].norm()]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_long_and_short_vectors_and_missing_ones(dtype: torch.dtype) -> None:
    """Each module is the sum of its own vectors' sketches, whoever was sketched before."""
    shapes = {"a.weight": (70, 260), "a.bias": (70,), "b.weight": (FIRST,), "c.weight": (2, FIRST)}
    tensors = {
        name: vector(int(np.prod(shape)), i).view(shape).to(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }
    sketches = ModuleSketches(tensors, 31)
    for chosen in (set(shapes), {"a.bias", "c.weight"}, {"a.weight"}, set(shapes)):
        some = {name: tensor for name, tensor in tensors.items() if name in chosen}
        sketched, norm = sketches(some)
        for row, module in enumerate(sketches.modules):
            own = {n: t.double().flatten() for n, t in some.items() if n.startswith(module)}
            expected = sum(
                (Sketch(n, t.numel(), 31)(t) for n, t in own.items()),
                torch.zeros(31, dtype=torch.float64),
            )
            exact = torch.cat([torch.zeros(1, dtype=torch.float64), *own.values()]).norm()
            tolerance = {"atol": 1e-4, "rtol": 1e-5}
            torch.testing.assert_close(sketched[row].double(), expected, **tolerance)
            torch.testing.assert_close(norm[row].double(), exact, **tolerance)
