"""The linearised network: against plain transformers and finite differences, networks that are
linear in their weights, and ones that leave the lazy regime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from explained import said
from networks import local_model
from recovery_probe_analyses.linearised import Linearised as Analysis
from recovery_probe_analyses.linearised import linearised
from torch import Tensor
from torch.func import functional_call, jvp
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe.analyze.across import across
from recovery_probe.analyze.perform import analyze
from recovery_probe.errors import Missing
from recovery_probe.linearised import Linearised

FLOAT64 = {"dtype": "float64"}
BOUND = 1e-6  # in float64: Llama's norms, and eager softmax, compute in float32
PADDED = {"tokens": 200, "min_tokens": 2, "count": 4, "held_out": 2}
# Only the unembedding is trained: logits are linear in what moves.
LAST_ALONE = {
    "interventions": ["freeze"],
    "freeze": {"modules": ["embed", "blocks", "ln_final"]},
}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def moved(model: rp.Model, seed: int = 0) -> None:
    """Every weight by a random amount."""
    draws = torch.Generator().manual_seed(seed)
    for weight in model.parameters.values():
        weight += 0.05 * torch.randn(weight.shape, generator=draws, dtype=weight.dtype)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_against_plain_transformers(architecture: str, attention: str, tmp_path: Path) -> None:
    """Forward, J Δ and Jᵀ v, of padded documents; and J Δ by finite differences."""
    folder = local_model(tmp_path / "model", architecture)
    source = {"source": str(folder), "attention": attention, **FLOAT64}
    training = rp.Training.open(tiny(model=source, documents=PADDED))
    model, tokens = training.model, training.inputs["tokens"]
    linear = Linearised.of(model)
    assert not training.inputs["mask"].all()
    every = slice(len(training.documents))
    here = training.losses(every).detach()
    assert relative(linear.losses(training.batch(every)).detach(), here) < 1e-12
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )

    def logits(weights: dict[str, Tensor]) -> Tensor:
        found = functional_call(plain, weights, (tokens,), {"use_cache": False})
        return found.logits  # type: ignore[no-any-return]

    start = {n: t.clone() for n, t in model.state_dict().items()}
    moved(model)
    change = {n: t - start[n] for n, t in model.state_dict().items()}
    value, derivative = jvp(logits, (start,), (change,))
    found = linear.logits(training.inputs)
    assert relative(found.detach(), value + derivative) < BOUND

    def difference(h: float) -> Tensor:
        forth, back = (logits({n: start[n] + s * change[n] for n in start}) for s in (h, -h))
        return ((forth - back) / (2 * h)).detach()

    h = 0.02  # wide: what is in float32 is rounded
    by_differences = (64 * difference(h) - 20 * difference(2 * h) + difference(4 * h)) / 45
    assert relative((found - value).detach(), by_differences) < 10 * BOUND

    v = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    (found * v).sum().backward()
    with torch.no_grad():  # gradients in the weights' places come out under plain names
        for weight in model.parameters.values():
            assert weight.grad is not None
            weight.copy_(weight.grad)
    gradients = model.state_dict()
    needed = {n: t.requires_grad_() for n, t in start.items()}
    exact = torch.autograd.grad((logits(needed) * v).sum(), list(needed.values()))
    largest = max(float(g.abs().max()) for g in exact)
    for name, g in zip(needed, exact, strict=True):
        assert float((gradients[name] - g).abs().max()) < BOUND * largest, name


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    training = rp.Training.open(tiny(model=FLOAT64))
    linear = Linearised.of(training.model)
    before = training.model.logits(training.inputs)
    with pytest.raises(IndexError):
        linear.logits({**training.inputs, "tokens": training.inputs["tokens"] + 10**6})
    assert torch.equal(training.model.logits(training.inputs), before)
    live = dict(training.model.bridge.named_parameters(remove_duplicate=False)).values()
    assert {id(p) for p in training.model.parameters.values()} <= {id(p) for p in live}


@pytest.mark.parametrize("optimizer", [{"lr": 3.0}, {"lr": 0.3, "momentum": 0.9}], ids=str)
def test_a_network_that_is_linear_in_what_is_trained(
    optimizer: dict[str, Any], tmp_path: Path
) -> None:
    """Softmax regression on features that nothing moves: the linearised one is the network."""
    settings = tiny(model=FLOAT64, optimizer=optimizer, documents={"count": 6}, **LAST_ALONE)
    run = rp.fit(settings, tmp_path / "run")
    dataset = Analysis(from_checkpoint=True)(run)
    assert dataset.episodes_done.values.tolist() == [0, 6]
    assert dataset.trained.values.tolist() == [[18, 12]]  # from either, to the run's end
    losses, trained = linearised(run, 6, 6)  # the optimizer goes on from what it remembers
    assert trained == 6
    np.testing.assert_allclose(losses, run.losses.values[6:13], atol=1e-10)
    np.testing.assert_allclose(dataset.r2, 1, atol=1e-6)
    score = dataset.score.transpose("network", ...).values
    np.testing.assert_allclose(score[0], score[1], atol=1e-6)
    if optimizer["lr"] == 3:
        q = dataset.q.sel(episodes_done=6).values
        np.testing.assert_allclose(q, 1, atol=1e-6)
        np.testing.assert_allclose(dataset.q_minus_1.sel(episodes_done=6), 0, atol=1e-6)
        assert said("H1", linearised=dataset) == "contradicted"
        assert said("H2", linearised=dataset) == "supported"
        seeds = [dataset.copy(deep=True) for _ in range(3)]
        for seed, off in zip(seeds, (-0.02, 0, 0.02), strict=True):
            seed["q"] += off
            seed["q_minus_1"] += off
        assert "Q less 1: equal within ±0.1" in Analysis().verdict(across(seeds))


def apart(lr: float, path: Path) -> tuple[rp.Run, float]:
    """A run, and how far the losses of the network and the linearised one are apart at most, within
    an epoch."""
    run = rp.fit(tiny(model=FLOAT64, optimizer={"lr": lr}, epochs=2), path)
    losses, _ = linearised(run, 0, 5)
    return run, float(np.abs(losses - run.losses.values[:6]).max())


def test_small_steps_are_lazy_and_large_ones_are_not(tmp_path: Path) -> None:
    """What the linearised network lacks is of second order in how far the weights move."""
    (_, near), (_, twice) = (apart(lr, tmp_path / str(lr)) for lr in (2e-4, 4e-4))
    assert 3.5 < twice / near < 4.5
    run, far = apart(1.0, tmp_path / "far")
    assert far > 0.1
    assert float(Analysis(from_checkpoint=True)(run).r2.squeeze()) < 0.8


@pytest.mark.parametrize(
    ("architecture", "shape", "refused"),
    [
        ("llama", {"intermediate_size": 48, "attention_dropout": 0.1}, True),
        ("bloom", {"hidden_dropout": 0.1}, True),
        ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, False),
    ],
    ids=["called", "a-module", "read-by-nobody"],
)
def test_dropout_is_refused_where_there_is_some(
    architecture: str, shape: dict[str, Any], refused: bool, tmp_path: Path
) -> None:
    source = {"source": str(local_model(tmp_path / "model", architecture, shape))}
    run = rp.fit(tiny(model=source, epochs=2), tmp_path / "run")
    if not refused:
        assert Analysis(from_checkpoint=True)(run).sizes["run"] == 1
        return
    with pytest.raises(Missing, match=r"the network has dropout.*--model.dropout 0"):
        Analysis(from_checkpoint=True)(run)


def test_what_was_found_from_checkpoints_stays_in_the_report(tmp_path: Path) -> None:
    """Of a later call that does not look at checkpoints, unless the run has gone on since."""
    run = rp.fit(tiny(epochs=2), tmp_path / "run")
    analyze(run, analyses=[Analysis(from_checkpoint=True)])
    found = analyze(run)
    assert "linearised" in found["analyses"]
    assert "linearised" not in found["not_done"]
    run = rp.fit(tiny(epochs=3), tmp_path / "run", resume=True)
    assert "linearised" in analyze(run)["not_done"]


def test_what_diverges_has_no_score(tmp_path: Path) -> None:
    """Of a learning rate that the network stands, and the linearised one does not."""
    run = rp.fit(tiny(optimizer={"name": "adam", "lr": 0.1}, epochs=2), tmp_path / "run")
    dataset = Analysis(from_checkpoint=True)(run)
    assert dataset.trained.item() < 10
    assert not dataset.q.notnull().any()
    assert not dataset.r2.notnull().any()
    assert "in 1 of 1 trainings" in Analysis().verdict(dataset)
    Analysis().plot(dataset)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"linearised runs the model again.*pass --from-checkpoint"),
        ({"from_checkpoint": True, "episodes": (10,)}, "no checkpoint after 10 .*after 0, 5"),
        ({"from_checkpoint": True, "epochs": 4}, "from which 4 epochs were trained; it has 15"),
    ],
)
def test_what_is_missing_is_named(settings: dict[str, Any], said: str, pair: rp.Run) -> None:
    with pytest.raises(Missing, match=said):
        Analysis(**settings)(pair)
