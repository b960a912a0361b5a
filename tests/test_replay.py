"""Analyses that run the model again, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from recovery_probe_analyses import pairwise_recovery
from recovery_probe_analyses.gradient_similarity import GradientSimilarity
from recovery_probe_analyses.pairwise_recovery import PairwiseRecovery

import recovery_probe as rp
from recovery_probe.analyze.across import across
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.modules import module_groups


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A tiny run with gradients of all documents recorded at the end of each epoch."""
    settings = tiny(
        recorders=["gradients", "document_gradients", "checkpoints"], model={"dtype": "float64"}
    )
    return rp.fit(settings, tmp_path_factory.mktemp("replay") / "run")


def loss(model: object, tokens: torch.Tensor) -> torch.Tensor:
    logits = model.bridge(tokens[None], use_cache=False)[0]  # type: ignore[attr-defined]
    return F.cross_entropy(logits[:-1], tokens[1:])


def separate_gradients(run: rp.Run, episodes_done: int) -> dict[str, torch.Tensor]:
    """Module -> (documents, …): one autograd pass for each document."""
    model = run.model_at(episodes_done)
    model.train(False)
    rows: dict[str, list[torch.Tensor]] = {}
    for tokens in torch.tensor(run.record.tokens.values):
        gradients = torch.autograd.grad(loss(model, tokens), list(model.parameters.values()))
        of_module: dict[str, list[torch.Tensor]] = {}
        for name, gradient in zip(model.parameters, gradients, strict=True):
            of_module.setdefault(name.rpartition(".")[0], []).append(gradient.flatten())
        for module, parts in of_module.items():
            rows.setdefault(module, []).append(torch.cat(parts))
    return {module: torch.stack(g) for module, g in rows.items()}


@pytest.mark.parametrize("recorded", [True, False])
def test_cosines_are_those_of_separate_gradients(
    run: rp.Run, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not recorded:
        monkeypatch.setitem(run.__dict__, "recorders", ["gradients"])
        with pytest.raises(rp.InputError, match="document_gradients, or pass --from-checkpoint"):
            GradientSimilarity()(run)
    analysis = GradientSimilarity(from_checkpoint=not recorded, episodes=(5, 15), modules=True)
    found = analysis(run)
    modules = run.gradients.module
    for time in (5, 15):
        exact = separate_gradients(run, time)
        groups = module_groups(modules, blocks=True)
        members = {group: modules["name"].values[which] for group, which in groups.items()}
        for group, names in (members | {name: [name] for name in exact}).items():
            g = torch.cat([exact[n] for n in names], dim=1)[:5]
            g = g / g.norm(dim=1, keepdim=True)
            cosine = found.cosine.sel(episodes_done=time, group=group).values[0]
            np.testing.assert_allclose(cosine, g @ g.T, atol=1e-6)


def test_modules_are_not_drawn_as_blocks(run: rp.Run) -> None:
    lines = []
    for modules in (False, True):
        fig = GradientSimilarity().plot(GradientSimilarity(modules=modules)(run))
        lines.append([len(axes.lines) for axes in fig.axes])
    assert lines[0] == lines[1]
    assert max(lines[0]) == 3  # two blocks, and all modules


def test_drops_are_those_of_naive_copies(run: rp.Run) -> None:
    with pytest.raises(rp.InputError, match="pass --from-checkpoint"):
        PairwiseRecovery()(run)
    found = PairwiseRecovery(from_checkpoint=True, episodes=(10,))(run)
    tokens = torch.tensor(run.record.tokens.values)
    for i in (0, 3):
        model = run.model_at(10)  # a copy for each document
        with torch.no_grad():
            before = [float(loss(model, t)) for t in tokens]
        for _ in range(3):
            model.bridge.zero_grad()
            loss(model, tokens[i]).backward()
            with torch.no_grad():
                for p in model.parameters.values():
                    p -= 0.1 * p.grad
        with torch.no_grad():
            after = [float(loss(model, t)) for t in tokens]
        expected = np.array(before) - after
        np.testing.assert_allclose(found.loss_drop.values[0, 0, i], expected, atol=1e-9)
    drop = found.loss_drop.values[0, 0]
    assert found.own.item() == pytest.approx(np.diagonal(drop).mean())
    ahead = np.mean([drop[i, (i + 1) % 5] for i in range(5)])
    assert found.lag_drop.sel(lag=1).item() == pytest.approx(ahead)
    off = drop[:, :5][~np.eye(5, dtype=bool)].mean() - drop[:, 5:].mean()
    assert found.more_than_held_out.item() == pytest.approx(off)


def test_every_document_starts_from_the_same_weights(
    run: rp.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are put back to the last bit: the loss before each document's updates is the same."""
    models = []
    model_at = rp.Run.model_at

    def seen(self: rp.Run, episodes_done: int, device: str) -> object:
        models.append(model_at(self, episodes_done, device))
        return models[-1]

    monkeypatch.setattr(rp.Run, "model_at", seen)
    pairwise_recovery.drops(run, 15)
    fresh = model_at(run, 15).parameters
    assert all(torch.equal(p, fresh[name]) for name, p in models[0].parameters.items())


def test_they_work_over_seeds(run: rp.Run) -> None:
    analyses: list[Analysis] = [PairwiseRecovery(from_checkpoint=True), GradientSimilarity()]
    for analysis in analyses:
        one = analysis(run)
        both = across([one, one])
        analysis.plot(both)
        assert "15 episodes" in analysis.summary(both)["verdict"]
