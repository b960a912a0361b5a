"""The weights a run begins from: how they are drawn, and what their hash tells of revisions."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny
from networks import local_model
from safetensors.torch import load_file

import recovery_probe as rp
from recovery_probe.analyze import analyze
from recovery_probe.analyze.groups import same_weights
from recovery_probe.models import Model

A, B = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3) + 7


def digest(**parameters: torch.Tensor) -> str:
    return Model.digest(SimpleNamespace(parameters=parameters))  # type: ignore[arg-type]


def test_a_digest_is_of_names_shapes_formats_and_bytes() -> None:
    expected = hashlib.sha256()
    for name, values in (("a", A), ("b", B)):
        expected.update(f"{name} torch.float32 (2, 3);".encode() + values.numpy().tobytes())
    assert digest(a=A, b=B) == digest(b=B, a=A) == expected.hexdigest()
    # However they lie in memory.
    strided = torch.empty(2, 6)[:, ::2].copy_(A)
    assert digest(a=strided, b=torch.nn.Parameter(B.T.contiguous()).T) == digest(a=A, b=B)
    others = [
        digest(a=B, b=A),
        digest(a=A, c=B),
        digest(a=A.reshape(3, 2), b=B),
        digest(a=A.view(torch.int32), b=B),
        digest(a=A.bfloat16(), b=B),
        digest(a=A, b=torch.nextafter(B, B + 1)),
        digest(a=A),
    ]
    assert len({digest(a=A, b=B), *others}) == 8
    assert digest(a=torch.tensor(1.0)) != digest(a=torch.tensor([1.0]))


def test_a_run_and_its_control_begin_from_the_same_weights(tmp_path: Path) -> None:
    settings = tiny(epochs=1, recorders=["checkpoints"])
    run = rp.fit(settings, tmp_path / "runs", control=["shuffled", "twin"])
    ((control,), (twin,)) = run.controls, run.twins
    assert control.provenance["weights"] == run.provenance["weights"]
    assert twin.provenance["weights"] != run.provenance["weights"]
    for each in (run, twin):
        assert each.model_at(0).digest() == each.provenance["weights"]
        assert each.model_at(5).digest() != each.provenance["weights"]
    begun = run.provenance["weights"]
    longer = rp.fit(rp.changed(settings, epochs=2), run.path, resume=True)
    assert longer.provenance["weights"] == begun


def test_revisions_that_hold_the_same_weights_are_told() -> None:
    """As many of Pythia's step branches do."""

    def run(source: str, revision: str, weights: str | None, of: str = "own") -> Any:
        model = SimpleNamespace(source=source, revision=revision, weights=of)
        provenance = {"weights": weights} if weights else {}
        return SimpleNamespace(config=SimpleNamespace(model=model), provenance=provenance)

    pythia = [run("a/b", "step1", "x"), run("a/b", "step2", "x"), run("a/b", "step3", "y")]
    others = [run("a/b", "step1", "x"), run("a/c", "step1", "x"), run("random", "step4", "x")]
    before = [run("a/b", "step5", None), run("a/b", "step6", None)]  # written without a hash
    drawn = [run("a/b", "step7", "x", "drawn")]
    assert same_weights([*pythia, *others, *before, *drawn]) == [
        "a/b: the revisions step1, step2 hold the same weights: they are one point, not several"
    ]
    assert same_weights([*pythia[1:], *before]) == []


def test_they_are_told_where_runs_are_read_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(local_model(tmp_path / "model", "llama"))  # which has one revision alone
    runs = [
        rp.fit(
            tiny(epochs=1, recorders=[], seed=i, model={"source": folder, "revision": revision}),
            tmp_path / revision,
        )
        for i, revision in enumerate(("step1000", "main"))
    ]
    assert "model, revision step1000" in runs[0].summary()["model"]
    capsys.readouterr()
    with pytest.raises(rp.InputError, match=r"they differ in model\.revision"):
        analyze(runs, out=tmp_path / "all")
    said = capsys.readouterr().err
    assert f"{folder}: the revisions step1000, main hold the same weights" in said


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "opt", "mixtral"])
def test_every_matrix_is_drawn_alike(architecture: str) -> None:
    """`normal`: σ = .02 throughout; biases 0, norms 1. And the MLP has its own width."""
    model = {"architecture": architecture, "init": "normal", "mlp_ratio": 2.5, "width": 64}
    training = rp.Training.open(tiny(model={**model, "dropout": 0}))
    shapes = set()
    for name, parameter in training.model.parameters.items():
        values = parameter.detach()
        if name.endswith("bias"):
            assert not values.any(), name
        elif values.ndim == 1:
            assert (values == 1).all(), name
        else:
            # The standard error of a standard deviation is σ / √(2n).
            off = abs(values.std().item() - 0.02)
            assert off < 5 * 0.02 / math.sqrt(2 * values.numel()), name
            shapes.add(tuple(sorted(values.shape)))
    assert any(shape[-2:] == (64, 160) for shape in shapes)


def test_the_digest_of_weights_is_of_all_of_them(tmp_path: Path) -> None:
    settings = tiny(epochs=1, recorders=["checkpoints"])
    run = rp.fit(settings, tmp_path / "run")
    first = run.model_at(0)
    assert run.provenance["weights"] == first.digest()
    assert run.provenance["parameters"] == sum(p.numel() for p in first.parameters.values())
    with torch.no_grad():
        last = list(first.parameters.values())[-1].view(-1)
        last[-1] = torch.nextafter(last[-1], torch.tensor(1.0))
    assert first.digest() != run.provenance["weights"]
    other = rp.fit(tiny(epochs=1, recorders=[], seed=1), tmp_path / "other")
    assert other.provenance["weights"] != run.provenance["weights"]


def test_the_network_of_a_source_with_fresh_weights(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "llama")
    drawn = rp.Training.open(tiny(model={"source": str(folder), "weights": "drawn"})).model
    own = rp.Training.open(tiny(model={"source": str(folder)})).model
    assert {n: p.shape for n, p in drawn.parameters.items()} == {
        n: p.shape for n, p in own.parameters.items()
    }
    width = own.parameters["embed.weight"].shape[1]
    sigma = math.sqrt(2 / (5 * width))
    embedded = drawn.parameters["embed.weight"]
    assert embedded.std().item() == pytest.approx(sigma, rel=0.05)
    assert not torch.equal(embedded, own.parameters["embed.weight"])


def test_paper_init_has_the_papers_spread(tmp_path: Path) -> None:
    width, depth = 64, 3
    run = rp.fit(
        tiny(epochs=1, steps=1, model={"width": width, "depth": depth}, optimizer={"lr": 1e-12}),
        tmp_path / "run",
    )
    weights = load_file(next(run.path.glob("checkpoints/*/model.safetensors")))
    inner, outward = math.sqrt(2 / (5 * width)), 2 / (depth * math.sqrt(width))
    expected = {
        "embed_in": inner,
        "embed_out": inner,
        "lm_head": inner,
        "query_key_value": inner,
        "dense_h_to_4h": inner,
        "attention.dense": outward,
        "dense_4h_to_h": outward,
    }
    seen = set()
    for name, tensor in weights.items():
        if name.endswith("bias"):
            assert tensor.abs().max() < 1e-6, name
        elif "norm" in name:
            assert (tensor - 1).abs().max() < 1e-6, name
        else:
            (role,) = (r for r in expected if r in name)
            seen.add(role)
            assert tensor.std().item() == pytest.approx(expected[role], rel=0.05), name
    assert len(seen) == 6
