"""Passes that go around idle wrappers compute what the bridge computes, to the bit, and whoever
hooks a point sees the next pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import recovery_probe as rp
from recovery_probe import models
from recovery_probe.hooking import hooked
from recovery_probe.models import Model, text
from recovery_probe.models.bypass import Bypass
from recovery_probe.recorders import Layout, Recorder, Step
from recovery_probe.testing import toy_settings as tiny
from recovery_probe.training import Training

ARCHITECTURES = ["gpt_neox", "llama", "gpt2", "gemma2", "phi3", "opt"]


def load(architecture: str, **model: Any) -> Model:
    wanted = {"architecture": architecture, "init": "library", "dropout": 0, **model}
    return models.load(tiny(model=wanted))


def with_gradients(model: Model, logits: torch.Tensor) -> list[torch.Tensor]:
    """Logits and the gradients of all parameters."""
    for parameter in model.parameters.values():
        parameter.grad = None
    logits.float().square().mean().backward()
    return [logits.detach(), *(p.grad for p in model.parameters.values() if p.grad is not None)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_bit_differs_from_the_bridges_own_pass(architecture: str) -> None:
    model = load(architecture)
    assert len(model.bypass.places) > 20
    inputs, _ = text.twins(text.probe(24, model.device))
    model.train()
    expected = with_gradients(model, model.bridge(inputs["tokens"], use_cache=False))
    assert len(expected) == 1 + len(model.parameters)
    watching = [("blocks.0.hook_out", "fwd", lambda x, hook: None)]
    with hooked(model.bridge, watching):
        partly = with_gradients(model, model.logits(inputs))
    for found in (with_gradients(model, model.logits(inputs)), partly):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:Backward hooks on hook_scale")
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2"])
def test_every_hook_point_fires_as_in_the_bridges_own_pass(architecture: str) -> None:
    """Each hooked alone, forward and backward: as often, and with the same tensors."""
    model = load(architecture)
    inputs = text.probe(8, model.device)

    def seen(point: str, direction: str, logits: Any) -> list[torch.Tensor]:
        tensors: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor, *, hook: Any) -> None:
            tensors.append(tensor.detach().clone())

        with hooked(model.bridge, [(point, direction, keep)]):
            logits().float().square().mean().backward()
        return tensors

    fired = set()
    for point in model.bridge.hook_dict:
        if not point.startswith("blocks.1."):
            for direction in ("fwd", "bwd"):
                ways = (
                    lambda: model.bridge(inputs["tokens"], use_cache=False),
                    lambda: model.logits(inputs),
                )
                expected, found = (seen(point, direction, way) for way in ways)
                assert len(found) == len(expected), (point, direction)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
                fired |= {(point, direction)} if found else set()
    assert len(fired) > 40


def test_a_run_is_the_same_to_the_bit_without_the_bypass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(recorders=["residual_stream", "gradients", "weight_deltas", "token_losses"])
    around = rp.fit(settings, tmp_path / "around").record.load()
    monkeypatch.setattr("recovery_probe.models.bypass._places", lambda network: [])
    through = rp.fit(settings, tmp_path / "through").record.load()
    assert around.identical(through)


def test_a_hook_added_in_mid_run_by_transformer_lens_own_means_fires(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {"added": [], "edited": []}

    class Late(Recorder):
        name = "late"

        def start(self, training: Training) -> Layout:
            return Layout()

        def before_step(self, step: Step) -> None:
            bridge = step.model.bridge
            if step.index == 4:
                bridge.add_hook(
                    "blocks.1.mlp.hook_pre", lambda x, hook: seen["added"].append(self.step)
                )
            if step.index == 7:
                bridge.reset_hooks()
            self.step = step.index

        def after_step(self, step: Step) -> None:
            self.step = -1  # in an evaluation

    rp.fit(tiny(epochs=1, recorders=[]), tmp_path / "run", hooks=[Late])
    assert seen["added"] == [4, 5, -1, 6]


def test_an_edit_reaches_the_losses() -> None:
    model = load("gpt_neox")
    inputs = text.probe(24, model.device)
    with torch.no_grad():
        before = model.losses(inputs)
        with model.bridge.hooks([("blocks.0.mlp.hook_out", lambda x, hook: 0 * x)]):
            edited = model.losses(inputs)
        expected = text.token_losses(
            model.bridge.run_with_hooks(
                inputs["tokens"], fwd_hooks=[("blocks.0.mlp.hook_out", lambda x, hook: 0 * x)]
            ),
            inputs,
        )
        assert torch.equal(edited, text.means(expected, inputs))
        assert not torch.equal(edited, before)
        assert torch.equal(model.losses(inputs), before)


def test_a_point_that_transformer_lens_switches_on_fires() -> None:
    model = load("llama")
    inputs = text.probe(24, model.device)
    shapes = []
    model.bridge.set_use_hook_mlp_in(True)
    point = "blocks.1.hook_mlp_in"
    with hooked(model.bridge, [(point, "fwd", lambda x, hook: shapes.append(x.shape))]):
        model.losses(inputs)
    assert shapes == [(1, 24, 32)]


def test_the_bridge_is_whole_again_after_a_pass_that_failed() -> None:
    model = load("gpt_neox")
    around = model.bypass
    assert isinstance(around, Bypass)
    with pytest.raises(IndexError):
        model.logits({"tokens": torch.tensor([[10**6]])})
    assert all(place.modules[place.name] is place.wrapper for place in around.places)
