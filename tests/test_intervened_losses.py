"""What interventions do, against plain Hugging Face loops that do the same by hand."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from intervened import ADAMW, HF, MOMENTUM, SMALL, directions, half, plain_losses

import recovery_probe as rp
from recovery_probe import EditActivations, Freeze, Mask, Project


def agree(run: rp.Run, oracle: np.ndarray, plain: rp.Run) -> None:
    """A run has the losses of an oracle, and they are not those of a run without intervention."""
    np.testing.assert_allclose(run.losses.values, oracle, atol=2e-5, rtol=0)
    assert np.abs(run.losses.values - plain.losses.values).max() > 1e-3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, rp.Run]:
    """Runs without an intervention, by their optimizer."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        o["name"]: rp.fit(tiny(**SMALL, optimizer=o), folder / o["name"]) for o in (MOMENTUM, ADAMW)
    }


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=lambda o: str(o["name"]))
def test_what_is_frozen_stays_and_the_rest_learns(
    optimizer: dict[str, Any], plain: dict[str, rp.Run], tmp_path: Path
) -> None:
    recorders = ["checkpoints", "gradients", "weight_deltas", "document_gradients"]
    run = rp.fit(
        tiny(**SMALL | {"recorders": recorders}, optimizer=optimizer),
        tmp_path / "run",
        interventions=[Freeze(embeddings=True, first=1, modules=("ln_fin*", "*.q.bias"))],
    )
    fixed = ("gpt_neox.layers.0.", "gpt_neox.embed_in.", "gpt_neox.final_layer_norm.")
    query = slice(0, 16)  # of head 0 of a joint query-key-value bias (96,), 2 heads

    def prepare(model: Any) -> None:
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(fixed))
            if name == "gpt_neox.layers.1.attention.query_key_value.bias":
                joint.append((p, p.detach().clone()))

    def restore(model: Any) -> None:
        ((p, start),) = joint
        for head in (0, 48):
            p.data[head : head + 16] = start[head : head + 16]

    joint: list[Any] = []
    agree(run, plain_losses(run, prepare=prepare, after=restore), plain[optimizer["name"]])
    start, end = (run.weights_at(k) for k in (0, run.episodes_done))
    for name, weight in start.items():
        moved = not np.array_equal(weight.view(np.int32), end[name].view(np.int32))
        assert moved != name.startswith(fixed), name
    joint_bias = "gpt_neox.layers.1.attention.query_key_value.bias"
    assert np.array_equal(start[joint_bias][query], end[joint_bias][query])
    held = [n.startswith(("embed", "blocks.0.", "ln_final")) for n in run.gradients.name.values]
    for recorder in ("gradients", "weight_deltas"):
        norms = run.recorder(recorder).norm.values
        assert (norms[:, held] == 0).all()
        assert (norms[1:, np.logical_not(held)] > 0).all()
    # Of all parameters, and so also of those.
    assert (np.einsum("emdd->emd", run.recorder("document_gradients").inner.values) > 0).all()


def test_masked_ids_are_drawn_anew_and_only_shown(plain: dict[str, rp.Run], tmp_path: Path) -> None:
    settings = tiny(**SMALL, optimizer=MOMENTUM, seed=4)
    run = rp.fit(settings, tmp_path / "run", interventions=[Mask(p=0.3)])
    drawn: list[np.ndarray] = []

    def shown(ids: torch.Tensor, step: int) -> torch.Tensor:
        stream = np.random.default_rng([4, zlib.crc32(f"mask of step {step}".encode())])
        drawn.append(stream.random((1, len(ids)))[0] < 0.3)
        return torch.where(torch.tensor(drawn[-1]), 0, ids)

    agree(run, plain_losses(run, shown=shown), plain["sgd"])
    assert len({hidden.tobytes() for hidden in drawn}) == len(drawn) == 18
    assert 0.2 < np.mean(drawn) < 0.4


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=lambda o: str(o["name"]))
@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("of", ["gradient", "update"])
def test_projected_vectors_have_nothing_in_the_directions(
    of: str,
    keep_norm: bool,
    optimizer: dict[str, Any],
    plain: dict[str, rp.Run],
    tmp_path: Path,
) -> None:
    span = torch.cat([t.flatten(1) for t in directions().values()], dim=1)  # (3, values)
    seen: list[tuple[float, float]] = []  # inner products with directions; and the norm

    def note(vectors: dict[str, torch.Tensor]) -> None:
        own = torch.cat([vectors[name].flatten() for name in HF])
        inner = (span @ own).abs() / span.norm(dim=1) / own.norm()
        seen.append((inner.max().item(), torch.cat([v.flatten() for v in vectors.values()]).norm()))

    class Watch(rp.Recorder):
        name = "watch"

        def start(self, training: Any) -> Any:
            return rp.Layout()

        def before_step(self, step: Any) -> None:
            self.old = {n: p.detach().clone() for n, p in step.model.parameters.items()}

        def after_step(self, step: Any) -> None:
            own = step.model.parameters.items()
            note({n: p.grad if of == "gradient" else p.detach() - self.old[n] for n, p in own})

    run = rp.fit(
        tiny(**SMALL, optimizer=optimizer),
        tmp_path / "run",
        interventions=[Project.along(directions(), of=of, keep_norm=keep_norm)],
        hooks=[Watch],
    )
    # An update is known as a difference of float32 weights.
    assert max(inner for inner, _ in seen) < (1e-5 if of == "gradient" else 1e-3)
    norms: list[float] = []
    old: dict[str, torch.Tensor] = {}

    def project(vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """By least squares in float64, with the norm of all."""
        own = torch.cat([vectors[name].flatten() for name in HF.values()]).double()
        inside = span.double().T @ torch.linalg.lstsq(span.double().T, own[:, None]).solution
        start, whole = 0, torch.stack([v.norm() for v in vectors.values()]).norm()
        for name in HF.values():
            size = vectors[name].numel()
            part = inside[start : start + size, 0].float()
            vectors[name] = vectors[name] - part.view_as(vectors[name])
            start += size
        rest = torch.stack([v.norm() for v in vectors.values()]).norm()
        scale = float(whole / rest) if keep_norm else 1.0
        norms.append(float(rest) * scale)
        return {name: v * scale for name, v in vectors.items()}

    def gradients(model: Any) -> None:
        if of == "gradient":
            changed = project({n: p.grad for n, p in model.named_parameters()})
            for name, p in model.named_parameters():
                p.grad = changed[name]

    def before(model: Any) -> None:
        old.update({n: p.detach().clone() for n, p in model.named_parameters()})

    def after(model: Any) -> None:
        if of == "update":
            changed = project({n: p.detach() - old[n] for n, p in model.named_parameters()})
            for name, p in model.named_parameters():
                p.data.copy_(old[name] + changed[name])

    oracle = plain_losses(run, gradients=gradients, before=before, after=after)
    np.testing.assert_allclose(run.losses.values, oracle, atol=2e-5, rtol=0)
    assert not np.array_equal(run.losses, plain[optimizer["name"]].losses)
    np.testing.assert_allclose([norm for _, norm in seen], norms, rtol=1e-3)


@pytest.mark.parametrize("during", ["training", "evaluation", "both"])
def test_an_edit_is_a_forward_hook_that_returns(
    during: str, plain: dict[str, rp.Run], tmp_path: Path
) -> None:
    def quieter(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        here = "training" if module.training else "evaluation"
        return output * 0.5 if during in (here, "both") else output

    def prepare(model: Any) -> None:
        for layer in model.gpt_neox.layers:
            layer.mlp.register_forward_hook(quieter)

    edit = EditActivations.of([("blocks.*.hook_mlp_out", half)], during=during)
    settings = tiny(**SMALL, optimizer=MOMENTUM, eval_batch=3)
    run = rp.fit(settings, tmp_path / "run", interventions=[edit])
    agree(run, plain_losses(run, prepare=prepare), plain["sgd"])


def test_inputs_changed_in_place_change_no_document(tmp_path: Path) -> None:
    class Hides(rp.Intervention):
        name = "hides"

        def inputs(self, step: Any, inputs: Any) -> Any:
            inputs["tokens"].zero_()
            return inputs

    settings = tiny(**SMALL)
    run = rp.fit(settings, tmp_path / "run", interventions=[Hides])
    oracle = plain_losses(run, shown=lambda ids, step: torch.zeros_like(ids))
    np.testing.assert_allclose(run.losses.values, oracle, atol=2e-5, rtol=0)
