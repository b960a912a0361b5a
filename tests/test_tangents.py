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
def test_it_is_the_difference_of_two_passes(
    architecture: str, attention: str, tmp_path: Path
) -> None:
    training = opened(tmp_path / "model", architecture, attention=attention)
    model, inputs, before = training.model, training.inputs, training.model.digest()
    moved, h = direction(model, 0.01), 1e-4
    logits, derivative = along(model, moved, inputs)
    with torch.no_grad():
        torch.testing.assert_close(logits, model.logits(inputs), rtol=1e-10, atol=1e-12)
        at = {n: p.detach() for n, p in model.parameters.items()}
        sides = []
        for sign in (1, -1):
            with model.with_weights({n: p + sign * h * moved[n] for n, p in at.items()}):
                sides.append(model.logits(inputs))
        expected = (sides[0] - sides[1]) / (2 * h)
    assert derivative.abs().max() > 1e-3
    torch.testing.assert_close(derivative, expected, rtol=1e-5, atol=1e-8)
    # At other weights, as if they were the model's own; and then all is as it was.
    other = {n: p + moved[n] for n, p in at.items()}
    there = along(model, moved, inputs, other)
    assert model.digest() == before
    assert not any(torch.isnan(p).any() for p in model.parameters.values())
    for name, parameter in model.parameters.items():
        parameter.data.copy_(other[name])
    for ours, own in zip(there, along(model, moved, inputs), strict=True):
        assert torch.equal(ours, own)
    few = {"unembed.weight": moved["unembed.weight"]} if "unembed.weight" in moved else {}
    assert along(model, few, inputs)[1].abs().max() == 0 or few


def test_the_expansion_is_that_of_explicit_jacobians(tmp_path: Path) -> None:
    training = opened(tmp_path / "model", "gpt_neox")
    model, moved = training.model, direction(training.model, 0.01)
    slope, curvature = expansion(*along(model, moved, training.inputs), training.inputs)
    flat = torch.cat([moved[n].flatten() for n in model.parameters])
    for document in range(3):
        inputs = training.batch(slice(document, document + 1))
        length = int(training.documents.lengths[document])
        (loss,) = model.losses(inputs)
        gradient = torch.autograd.grad(loss, list(model.parameters.values()))
        expected = sum((g * v).sum() for g, v in zip(gradient, moved.values(), strict=True))
        assert slope[document].item() == pytest.approx(float(expected), rel=1e-8)
        total = 0.0
        for position in range(length - 1):
            z = model.logits(inputs)[0, position]
            rows = torch.stack(
                [
                    torch.cat(
                        [
                            g.flatten()
                            for g in torch.autograd.grad(
                                each, list(model.parameters.values()), retain_graph=True
                            )
                        ]
                    )
                    for each in z
                ]
            )
            p = z.detach().softmax(0)
            metric = torch.diag(p) - torch.outer(p, p)
            total += float((rows @ flat) @ metric @ (rows @ flat))
            if position == 1:
                break
        # Two positions of the document suffice: cut to them.
        cut = {n: values[:, :3] for n, values in inputs.items()}
        _, short = expansion(*along(model, moved, cut), cut)
        assert short[0].item() == pytest.approx(total / 2, rel=1e-8)
    assert (curvature > 0).all()


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
