"""The hash of the weights that a run began from, and what it tells of revisions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny
from networks import local_model

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
