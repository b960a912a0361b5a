"""Inner products of documents' gradients, where they are hardest too: against one backward pass
for each document, by autograd alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from networks import local_model

import recovery_probe as rp
from recovery_probe import gradient_products
from recovery_probe.gradient_products import GradientProducts
from recovery_probe.sketch import module_of

CASES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"intermediate_size": 64},
    "gemma": {
        "head_dim": 8,
        "intermediate_size": 64,
        "num_key_value_heads": 1,
    },  # tied, rows times √width
    "gemma2": {"head_dim": 8, "intermediate_size": 64, "num_key_value_heads": 2},
    # tied, with a bias of the unembedding; a padding token that stands in the text
    "gptj": {"rotary_dim": 4, "tie_word_embeddings": True},
    "llama": {"intermediate_size": 48, "pad_token_id": 300},
}
DOCUMENTS = {"tokens": 150, "min_tokens": 2, "count": 4, "held_out": 2}
BOUND = 1e-6  # in float64: some of these networks compute a part in float32


def opened(architecture: str, folder: Path, dtype: str = "float64", **changes: Any) -> rp.Training:
    local_model(folder, architecture, CASES[architecture])
    settings = tiny(
        model={"source": str(folder), "dtype": dtype}, **{"documents": DOCUMENTS, **changes}
    )
    training = rp.Training.open(settings)
    assert (training.inputs["tokens"] == 300).any()
    return training


def by_autograd(training: rp.Training) -> np.ndarray:
    """(module, document, other)"""
    parameters, each = training.model.parameters, []
    training.model.train(False)
    for i in range(len(training.documents)):
        training.losses(slice(i, i + 1))[0].backward()
        each.append({n: p.grad.double().flatten() for n, p in parameters.items()})
        for p in parameters.values():
            p.grad = None
    products = []
    for module in training.sketches.modules:
        own = [n for n in parameters if module_of(n) == module]
        stacked = torch.stack([torch.cat([g[n] for n in own]) for g in each])
        products.append((stacked @ stacked.T).numpy())
    return np.stack(products)


def error(products: np.ndarray, expected: np.ndarray) -> float:
    """Largest error of a cosine."""
    norm = np.sqrt(np.einsum("mii->mi", expected))
    scale = norm[:, :, None] * norm[:, None, :] + 1e-30
    return float((np.abs(products - expected) / scale).max())


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen3"])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
def test_of_every_module_and_of_the_whole(
    architecture: str, dtype: str, bound: float, tmp_path: Path
) -> None:
    model: dict[str, Any] = {"architecture": "qwen3", "init": "library"}
    if architecture != "qwen3":
        model = {"source": str(local_model(tmp_path / "model", architecture))}
    training = rp.Training.open(tiny(model={**model, "dtype": dtype}, documents=DOCUMENTS))
    products = GradientProducts(training)().numpy()
    expected = by_autograd(training)
    assert error(products, expected) < bound
    total, exact = products.sum(0), expected.sum(0)
    assert (np.abs(total - exact) / np.abs(exact).max()).max() < bound
    points = training.model.bridge.hook_dict.values()
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in points)
    assert all(p.grad is None for p in training.model.parameters.values())


@pytest.mark.parametrize("architecture", list(CASES))
@pytest.mark.parametrize(
    ("batch", "factors", "cut"),
    [(8, 2**32, 2**24), (4, 2**32, 2**24), (4, 1, 100)],
    ids=["one-batch", "batches", "passes-and-slices"],
)
def test_of_odd_networks(
    architecture: str,
    batch: int,
    factors: int,
    cut: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradient_products, "FACTORS", factors)
    monkeypatch.setattr(gradient_products, "SLICE", cut)
    training = opened(architecture, tmp_path / "model", eval_batch=batch)
    products, expected = GradientProducts(training), by_autograd(training)
    assert error(products().numpy(), expected) < BOUND
    assert error(products(2).numpy(), expected[:, :2, :2]) < BOUND


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_bfloat16_and_its_check(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 with the same weights: the squared norm of a LayerNorm's gradient, as a CPU
    sums it up in bfloat16, is 20% off."""
    training = opened(architecture, tmp_path / "model", dtype="bfloat16")
    training.model.save(tmp_path / "rounded")
    exact = {"model.source": str(tmp_path / "rounded"), "model.dtype": "float64"}
    reference = rp.Training.open(rp.changed(training.settings, **exact))
    products = GradientProducts(training)
    assert error(products().numpy(), by_autograd(reference)) < 2e-2
    right = GradientProducts._normalized
    monkeypatch.setattr(GradientProducts, "_normalized", lambda *args: 1.05 * right(*args))
    with pytest.raises(RuntimeError, match=r"ln.*the factors give .* where autograd gives"):
        products()


def test_bfloat16_of_many_positions(tmp_path: Path) -> None:
    """In as many, what autograd sums up in bfloat16 is no measure of a LayerNorm's gradient."""
    many = {"tokens": 256, "min_tokens": 2, "count": 25, "held_out": 0}
    training = opened(
        "gpt_neox", tmp_path / "model", dtype="bfloat16", documents=many, eval_batch=32
    )
    GradientProducts(training)()


def test_they_are_recorded_with_their_cost_said_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(recorders=["document_gradients", "checkpoints"], epochs=1)
    run = rp.fit(settings, tmp_path / "run")
    (line,) = (t for t in capsys.readouterr().err.splitlines() if t.startswith("record document"))
    assert " s at each of 2 episodes" in line
    inner = run.recorder("document_gradients").inner
    assert inner.dims == ("episodes_done", "module", "document", "other")
    for done in (0, 5):
        there = rp.Training.at(run, done)
        assert error(inner.sel(episodes_done=done).values, by_autograd(there)) < 1e-5
