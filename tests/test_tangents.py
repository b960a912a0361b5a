"""Derivatives along a direction, against explicit Jacobians and finite differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from networks import local_model

import recovery_probe as rp
from recovery_probe.models import Model
from recovery_probe.tangents import along, expansion
from recovery_probe.training import Training


def opened(folder: Path, architecture: str, **changes: object) -> Training:
    settings = tiny(
        model={
            "source": str(local_model(folder, architecture)),
            "dtype": "float64",
            **changes,
        },
        documents={"count": 2, "held_out": 1, "tokens": 7, "min_tokens": 2},
    )
    training = Training.open(settings)
    training.model.train(False)
    return training


def direction(model: Model, size: float = 1.0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    return {
        name: size * torch.randn(p.shape, generator=draws, dtype=p.dtype)
        for name, p in model.parameters.items()
    }


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [("gpt_neox", "eager"), ("llama", "eager"), ("gpt2", "eager"), ("llama", "sdpa")],
)
def test_it_is_what_backward_passes_say(architecture: str, attention: str, tmp_path: Path) -> None:
    """uᵀ(Jv), for any u, is vᵀ(Jᵀu)."""
    training = opened(tmp_path / "model", architecture, attention=attention)
    model, inputs, before = training.model, training.inputs, training.model.digest()
    own, moved = dict(model.parameters), direction(model, 0.01)
    logits, derivative = along(model, moved, inputs)
    plain = model.logits(inputs)
    torch.testing.assert_close(logits, plain.detach(), rtol=1e-10, atol=1e-12)
    u = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=plain.dtype)
    gradients = torch.autograd.grad((u * plain).sum(), list(own.values()))
    expected = sum((g * v).sum() for g, v in zip(gradients, moved.values(), strict=True))
    # Some norms compute in float32 whatever the weights are.
    assert (u * derivative).sum().item() == pytest.approx(float(expected), rel=1e-4)
    # At other weights, as if they were the model's own; and then all is as it was.
    other = {n: p.detach() + moved[n] for n, p in own.items()}
    there = along(model, moved, inputs, other)
    assert model.digest() == before
    for name, parameter in own.items():
        parameter.data.copy_(other[name])
    for elsewhere, here in zip(there, along(model, moved, inputs), strict=True):
        assert torch.equal(elsewhere, here)
    assert along(model, {}, inputs)[1].abs().max() == 0


def test_it_is_the_difference_of_two_passes(tmp_path: Path) -> None:
    training = opened(tmp_path / "model", "gpt_neox")
    model, inputs = training.model, training.inputs
    moved, h, sides = direction(model, 0.01), 1e-4, []
    with torch.no_grad():
        for sign in (1, -1):
            there = {n: p + sign * h * moved[n] for n, p in model.parameters.items()}
            with model.with_weights(there):
                sides.append(model.logits(inputs))
    expected = (sides[0] - sides[1]) / (2 * h)
    torch.testing.assert_close(along(model, moved, inputs)[1], expected, rtol=1e-5, atol=1e-8)


def test_the_expansion_is_that_of_explicit_jacobians(tmp_path: Path) -> None:
    training = opened(tmp_path / "model", "gpt_neox")
    model, moved, own = training.model, direction(training.model, 0.01), training.model.parameters
    inputs = {name: values[:, :4] for name, values in training.inputs.items()}
    slope, curvature = expansion(*along(model, moved, inputs), inputs)

    def products(of: torch.Tensor) -> torch.Tensor:
        """Each entry's gradient, times the direction."""
        gradients = torch.autograd.grad(
            of, list(own.values()), torch.eye(len(of)).to(of), True, is_grads_batched=True
        )
        pairs = zip(gradients, moved.values(), strict=True)
        return torch.stack([g.flatten(1) @ v.flatten() for g, v in pairs]).sum(0)

    losses = model.losses(inputs)
    torch.testing.assert_close(slope, products(losses), rtol=1e-8, atol=0)
    for document in range(2):
        z = model.logits({n: v[document : document + 1] for n, v in inputs.items()})[0]
        values = []
        for position in range(3):  # what is expected after the last is nobody's token
            p, jv = z[position].detach().softmax(0), products(z[position])
            values.append(jv @ (torch.diag(p) - torch.outer(p, p)) @ jv)
        expected = torch.stack(values).mean().item()
        assert curvature[document].item() == pytest.approx(expected, rel=1e-8)


def test_what_replaces_weights_is_gone_after_an_error(tmp_path: Path) -> None:
    model = opened(tmp_path / "model", "gpt2").model
    before = {n: id(p) for n, p in model.parameters.items()}
    held = [dict(module._parameters) for module in model._modules]
    zeros = {n: torch.zeros_like(p) for n, p in model.parameters.items()}
    with pytest.raises(ZeroDivisionError), model.with_weights(zeros):
        1 / 0  # noqa: B018
    assert before == {n: id(p) for n, p in model.parameters.items()}
    assert held == [dict(module._parameters) for module in model._modules]


def test_the_recorder_is_that_of_two_checkpoints(tmp_path: Path) -> None:
    """`state_return`, recorded and replayed, against weights read from checkpoints."""
    settings = tiny(
        epochs=3,
        recorders=["checkpoints", "state_return"],
        checkpoints={"every": "episode"},
        state_return={"documents": 2},
    )
    run = rp.fit(settings, tmp_path / "run")
    found = run.recorder("state_return").load()
    assert found.episodes_done.values.tolist() == list(range(6, 16))
    assert found.watched.values.tolist() == [True, False, True] + [False] * 4
    assert np.isnan(found.curvature.sel(document=~found.watched)).all()
    # Document 2 was last trained on in episode 7 and 12 (from 0).
    assert np.isnan(found.curvature.sel(document=2, episodes_done=7))
    assert found.curvature.sel(document=2, episodes_done=[8, 13]).values.tolist() == [0, 0]
    then, now = Training.at(run, 8), Training.at(run, 11)
    moved = {
        n: now.model.parameters[n].detach() - p.detach() for n, p in then.model.parameters.items()
    }
    inputs = then.batch(slice(2, 3))
    slope, curvature = expansion(*along(then.model, moved, inputs), inputs)
    here = found.sel(document=2, episodes_done=11)
    assert here.curvature.item() == pytest.approx(curvature.item(), rel=1e-5)
    assert here.slope.item() == pytest.approx(slope.item(), rel=1e-5)
    square = sum(float((v.double() ** 2).sum()) for v in moved.values())
    assert here.distance.item() == pytest.approx(square, rel=1e-6)
    # From a checkpoint in the middle of the window nothing is known of what came before.
    plain = rp.fit(tiny(recorders=["checkpoints"]), tmp_path / "plain")
    (again,) = [plain.replay(record=["state_return"], episodes=(5, 15)).recorder("state_return")]
    shared = found.curvature.sel(document=[0, 2]).values
    np.testing.assert_allclose(again.curvature.sel(document=[0, 2]).values, shared, rtol=1e-6)
