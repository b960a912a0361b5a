"""kernel_by_lag: against autograd, document by document, and on planted kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from networks import local_model
from recovery_probe_analyses.kernel_by_lag import KernelByLag, inner_products, numbers
from torch import Tensor

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.errors import Missing
from recovery_probe.simulations.linear_documents import LinearDocuments

SIGNS, DOCUMENTS = 3, {"tokens": 200, "min_tokens": 2, "count": 4, "held_out": 2}


@pytest.mark.parametrize(
    ("architecture", "batch"), [("gpt_neox", 25), ("gpt_neox", 4), ("llama", 25)], ids=str
)
def test_against_autograd_document_by_document(
    architecture: str, batch: int, tmp_path: Path
) -> None:
    """Of plain calls of the network, with the same signs, padded documents among them."""
    source = {"source": str(local_model(tmp_path / "model", architecture)), "dtype": "float64"}
    changes: dict[str, Any] = {"epochs": 1, "steps": 1, "eval_batch": batch}
    run = rp.fit(tiny(model=source, documents=DOCUMENTS, **changes), tmp_path / "run")
    found = inner_products(run, 4, SIGNS)
    model, tokens = run.model_at(4), torch.tensor(run.record.tokens.values)
    lengths = run.record.length.values
    assert lengths.min() < 200
    signs = run.rng("signs").choice([-1.0, 1.0], size=(SIGNS, model.vocabulary))
    weights = list(model.parameters.values())

    def gradient(number: Tensor) -> Tensor:
        parts = torch.autograd.grad(number, weights, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    of_kernel, of_loss = [], []
    for row, length in zip(tokens, lengths, strict=True):
        logits = model.bridge(row[None, :length], use_cache=False)[0, :-1]
        of_kernel.append([gradient(torch.tensor(u) @ logits.mean(dim=0)) for u in signs])
        wanted = logits.log_softmax(dim=-1)[torch.arange(length - 1), row[1:length]]
        of_loss.append(gradient(-wanted.mean()))
    kernel = sum(torch.stack(each) @ torch.stack(each).T for each in zip(*of_kernel, strict=True))
    losses = torch.stack(of_loss) @ torch.stack(of_loss).T
    for ours, exact in zip(found, (kernel / SIGNS, losses), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-9 * float(exact.abs().max()))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    out = tmp_path_factory.mktemp("linear")
    return rp.simulate(LinearDocuments(documents=12, held_out=3, epochs=3, weights=20), out)


def kernels(run: rp.Run, ring: bool) -> np.ndarray:
    """(T, T + H) cosines of linear documents X_k: their kernel X_i·X_jᵀ, whose trace is that of the
    inner products of X. On a ring what is shared turns with the document's place."""
    T, H, rng = 12, 3, np.random.default_rng(0)
    own, a, b = rng.normal(size=(T + H, 4000)), *rng.normal(size=(2, 4000))
    turn = 2 * np.pi * np.arange(T + H) / T
    shared = np.cos(turn)[:, None] * a + np.sin(turn)[:, None] * b if ring else a
    X = np.sqrt(0.5) * own + np.sqrt(0.5) * shared
    return stats.cosines(X @ X.T)[:T]


def planted(run: rp.Run, *rings: bool) -> Any:
    """The run's kernel at two times, on a ring or not; its control's is flat at both."""
    own = np.stack([kernels(run, ring) for ring in rings])
    flat = np.stack([kernels(run, False)] * 2)
    cosine = np.stack([[own, flat]] * 2)
    return numbers(cosine, np.ones((2, 2, 2)), [run, *run.controls], [0, 24])


def test_linear_documents_have_a_flat_kernel(simulated: rp.Run) -> None:
    dataset = planted(simulated, False, False)
    np.testing.assert_allclose(dataset.by_lag, 0.5, atol=0.03)
    for name in ("near_minus_far", "growth"):
        found = estimate.get(dataset.isel(run=0, episodes_done=-1), name)
        assert abs(found.value) < 0.02
        assert found.low <= 0 <= found.high
    assert estimate.get(dataset.isel(run=0, episodes_done=-1), "distance_r").p > 0.05


def test_a_ring_that_grows_is_found(simulated: rp.Run) -> None:
    dataset = planted(simulated, False, True)
    last = dataset.isel(episodes_done=-1)
    by_lag = last.by_lag.sel(run="cyclic").values
    expected = 0.5 * np.cos(2 * np.pi * np.arange(1, 7) / 12)  # K falls with lag
    np.testing.assert_allclose(by_lag, expected, atol=0.03)
    for name, prefix in (("near_minus_far", ""), ("growth", ""), ("growth", "loss_")):
        found = estimate.get(last, f"{prefix}{name}", run="cyclic")
        assert found.low > 0.2  # effects take one of the ring's two dimensions: half of .93
        difference = estimate.get(last, f"{prefix}{name}_difference", control="shuffled")
        assert difference.low > 0.2
    assert dataset.episodes_done.values.tolist() == [0, 24]
    assert estimate.get(last, "distance_r", run="cyclic").p < 0.01
    assert estimate.get(last, "distance_r", run="shuffled").p > 0.05


def test_what_is_missing_is_named(pair: rp.Run) -> None:
    with pytest.raises(Missing, match=r"kernel_by_lag runs the model again.*--from-checkpoint"):
        KernelByLag()(pair)
    with pytest.raises(Missing, match="no checkpoint after 7 episodes; there are some after 0, 5"):
        KernelByLag(from_checkpoint=True, episodes=(7,))(pair)
