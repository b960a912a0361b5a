"""Loss changes allocated to episodes and modules: against brute force by autograd, on planted
truths, and from the command line."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
import xarray as xr
import zarr
from conftest import cut, tiny
from networks import local_model
from recovery_probe_analyses.allocation import PARTS, Allocation

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.directional_derivatives import DirectionalDerivatives, Weights
from recovery_probe.simulations.linear_documents import LinearDocuments
from recovery_probe.sketch import module_of

SHAPES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"intermediate_size": 64},
    "llama": {"intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},  # norms of the bridge's own
    "gptj": {"rotary_dim": 4, "tie_word_embeddings": True},  # a bias of the tied unembedding
    # 1 + the weight of a norm
    "gemma": {"head_dim": 8, "intermediate_size": 64, "num_key_value_heads": 1},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},  # positions of all documents in one axis
}
ACCURACY = 1e-6  # a norm of Llama computes in float32
FEW = {"count": 3, "held_out": 1, "tokens": 12, "min_tokens": 12}


def gradients(training: rp.Training) -> list[dict[str, torch.Tensor]]:
    """Of each document by itself, by autograd alone."""
    parameters = training.model.parameters
    training.model.train(False)
    found = []
    for i in range(len(training.documents)):
        (loss,) = training.losses(slice(i, i + 1))
        each = torch.autograd.grad(loss, list(parameters.values()))
        found.append(dict(zip(parameters, each, strict=True)))
    return found


def by_module(training: rp.Training, direction: dict[str, torch.Tensor]) -> np.ndarray:
    """(module, document)"""
    modules = list(dict.fromkeys(map(module_of, training.model.parameters)))
    found = np.zeros((len(modules), len(training.documents)))
    for j, gradient in enumerate(gradients(training)):
        for name, g in gradient.items():
            found[modules.index(module_of(name)), j] += float((g * direction[name]).sum())
    return found


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("architecture", list(SHAPES))
def test_along_any_direction(architecture: str, tmp_path: Path) -> None:
    source = str(local_model(tmp_path / "model", architecture, SHAPES[architecture]))
    model = {"source": source, "dtype": "float64"}
    training = rp.Training.open(tiny(model=model, documents=FEW, eval_batch=3))
    draws = torch.Generator().manual_seed(0)
    direction = {
        name: torch.randn(p.shape, generator=draws, dtype=p.dtype)
        for name, p in training.model.parameters.items()
    }
    expected = by_module(training, direction)
    found = DirectionalDerivatives(training)(direction).numpy()
    for ours, exact in zip(found, expected, strict=True):
        assert error(ours, exact) < 1e-6  # GPT-J computes a part in float32
    assert not any(p._forward_hooks for p in training.model.bridge.modules() if p._parameters)
    assert all(p.grad is None for p in training.model.parameters.values())


def test_a_network_that_uses_weights_in_another_way_is_refused(tmp_path: Path) -> None:
    shape = {"intermediate_size": 48, "num_local_experts": 2, "num_key_value_heads": 2}
    source = str(local_model(tmp_path / "model", "mixtral", shape))
    settings = tiny(model={"source": source}, documents=FEW, recorders=["allocation"])
    with pytest.raises(rp.InputError, match=r"allocation does not know .*--no-record allocation"):
        rp.fit(settings, tmp_path / "run")


def walked(training: rp.Training, start: Weights, stop: Weights) -> np.ndarray:
    """(module, document): one backward pass for each document at each of 17 places on a line, by
    Romberg's rule."""
    moved, each = {name: stop[name] - start[name] for name in start}, []
    for place in np.linspace(0, 1, 17):
        for name, parameter in training.model.parameters.items():
            parameter.data = start[name] + place * moved[name]
        each.append(by_module(training, moved))
    return np.asarray(scipy.integrate.romb(np.array(each), dx=1 / 16, axis=0))


def weights(training: rp.Training) -> Weights:
    return {name: p.detach().clone() for name, p in training.model.parameters.items()}


@pytest.mark.parametrize("line", ["episode", "step"])
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_of_an_episode_is_what_brute_force_finds(
    architecture: str, line: str, tmp_path: Path
) -> None:
    settings = tiny(
        model={"architecture": architecture, "dtype": "float64"},
        documents=FEW,
        epochs=2,
        steps=2,
        recorders=["allocation", "checkpoints"],
        checkpoints={"every": "episode"},
        optimizer={"lr": 0.03},
        allocation={"epochs": 1, "accuracy": ACCURACY, "line": line},
    )
    run = rp.fit(settings, tmp_path / "run")
    assert run.allocation.episodes_done.values.tolist() == [4, 5, 6]
    training = rp.Training.at(run, 4)
    path = [weights(training)]
    for step in training.steps(4):
        training.optimizer.zero_grad()
        training.model.losses(step.inputs).sum().backward()
        training.optimizer.step()
        path.append(weights(training))
    path = path if line == "step" else [path[0], path[-1]]
    lines = [walked(training, start, stop) for start, stop in itertools.pairwise(path)]
    expected = np.sum(lines, axis=0)
    row = run.allocation.sel(episodes_done=5)
    assert error(row.allocated.values, expected) < 1e-6
    change = run.losses.values[5] - run.losses.values[4]
    np.testing.assert_allclose(row.allocated.sum("module") - row.residual, change, atol=1e-12)
    assert np.abs(row.residual).sum() <= ACCURACY * np.abs(change).sum()
    assert 3 <= row.places <= 24


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mend that is said is what mends it; the residual is in the verdict."""
    run = rp.fit(tiny(documents=FEW, epochs=4), tmp_path / "runs", control="shuffled")
    words = ["analyze", str(run.path), "--analysis", "allocation"]
    for of in (run, *run.controls):
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"error: {of.path}: recorder allocation was off; python -m")
        assert said.endswith("--episodes 6:12 adds it")
        main(shlex.split(said.partition("recovery_probe.")[2].removesuffix(" adds it")))
        assert "bit for bit" in capsys.readouterr().err
    main(words)
    said = "What modules do not add up to, of all loss changes: 0."
    assert said in (run.path / "report.html").read_text()
    found = Allocation()(run.refresh(), *run.refresh().controls)
    assert "too much to rely on" not in Allocation().verdict(found)
    found["residual_share"][1] = 0.11
    assert "too much to rely on any split" in Allocation().verdict(found)
    with pytest.raises(rp.InputError, match="episodes 3:6: nothing of allocation is due in them"):
        run.replay(record=["allocation"], episodes=(3, 6), overwrite=True)
    assert rp.open_run(run.path).allocation.sizes["episodes_done"] == 6
    run.replay(record=["allocation"], episodes=(7, 9), overwrite=True)
    with pytest.raises(
        rp.Missing, match=r"replayed for episodes 7:9 alone; .* 6:12 --overwrite has"
    ):
        Allocation()(rp.open_run(run.path))
    stopped = cut(run, tmp_path / "stopped", 8)
    with pytest.raises(rp.Missing, match=r"allocation --allocation\.epochs 4 --episodes 3:8"):
        Allocation()(stopped)


def test_the_residual_is_what_was_asked_for(tmp_path: Path) -> None:
    for accuracy in (0.5, 1e-4):
        mine = rp.plugins.find("recorders", "allocation")(epochs=1, accuracy=accuracy)
        settings = tiny(documents=FEW, epochs=2, recorders=[], optimizer={"lr": 0.3})
        run = rp.fit(settings, tmp_path / f"{accuracy}", hooks=[mine])
        of, change = run.allocation, np.diff(run.losses.values[3:], axis=0)
        np.testing.assert_allclose(of.allocated.sum("module") - of.residual, change, atol=1e-12)
        share = np.abs(of.residual).sum("document") / np.abs(change).sum(axis=1)
        assert (share < accuracy).all()
        assert (of.places > 3).any() == (accuracy < 0.5)


def test_what_is_held_fixed_has_none(tmp_path: Path) -> None:
    held = ["embed", "ln_final", "unembed", "blocks.0", "blocks.1.attn", "blocks.1.ln*"]
    held += ["blocks.1.mlp.in", "blocks.1.mlp.out.bias"]
    settings = tiny(
        documents=FEW,
        recorders=["allocation"],
        interventions=["freeze"],
        freeze={"modules": held},
    )
    of = rp.fit(settings, tmp_path / "run").allocation
    (place,) = np.flatnonzero(of["name"].values == "blocks.1.mlp.out")
    each = of.allocated.values
    assert not np.delete(each, place, axis=1).any()
    change = each[:, place] - of.residual.values
    assert (np.abs(change).max(axis=1) > 1e-3).all()
    assert (np.abs(of.residual).sum("document") < 0.02 * np.abs(change).sum(axis=1)).all()


def test_more_epochs_have_their_own_last_ones(tmp_path: Path) -> None:
    """Rows of the second of two epochs stand where they belong among those of three."""
    settings = tiny(documents=FEW, epochs=2, recorders=["allocation", "checkpoints"])
    whole = rp.fit(rp.changed(settings, epochs=3), tmp_path / "whole").allocation.load()
    rp.fit(settings, tmp_path / "run")
    longer = rp.fit(rp.changed(settings, epochs=3), tmp_path / "run", resume=True).allocation
    assert longer.episodes_done.values.tolist() == [*range(4, 10)]
    xr.testing.assert_identical(longer.load(), whole)


# --- the analysis -----------------------------------------------------------------------------


def test_linear_documents_are_exact(tmp_path: Path) -> None:
    """Their weights, moved step by step, and the trapezoid rule, which is exact of a quadratic."""
    made = LinearDocuments(documents=6, held_out=2, epochs=3, equations=4, steps=3)
    run = rp.simulate(made, tmp_path / "run")
    recorded = run.allocation.allocated
    change = np.diff(run.losses.values[6:], axis=0)
    np.testing.assert_allclose(recorded.sum("module").values, change, atol=1e-13)
    problem, w, rows = made.problem(0), np.zeros(300), []
    X, y = problem.X, problem.y

    def slopes(w: np.ndarray) -> np.ndarray:
        return np.einsum("jqd,jq->jd", X, X @ w - y) / 4  # (document, d)

    for k in run.schedule.values:
        before = w
        for _ in range(3):
            w = w - made.lr * slopes(w)[k]
        each = (slopes(before) + slopes(w)) / 2 * (w - before)
        rows.append([each[:, :150].sum(axis=1), each[:, 150:].sum(axis=1)])
    np.testing.assert_allclose(recorded.values, np.array(rows)[6:], atol=1e-12)
    dataset = Allocation()(run, *run.controls)
    assert (dataset.residual_share < 1e-12).all()
    np.testing.assert_allclose(dataset.fall.sel(part="whole", group="total"), dataset.recorded_fall)


def by_hand(run: rp.Run, each: np.ndarray, start: int, p: int, last: int) -> dict[str, Any]:
    """fall, help and harm by part, (document,) each, of (episode, module, document) from `start`
    on; transfer (age, document). By walking."""
    schedule, T = run.schedule.values.tolist(), run.config.documents.count
    falls = {name: np.full((3, T), np.nan) for name in PARTS}
    transfer = np.full((T, T), np.nan)
    for j in range(T):
        turns = [k for k, document in enumerate(schedule) if document == j]
        cases: list[dict[str, np.ndarray]] = []
        at: dict[int, list[float]] = {}
        for k in range(start, len(schedule)):
            if before := [v for v in turns if v <= k]:
                at.setdefault(k - before[-1], []).append(each[k - start, :, j].sum())
        for v, following in itertools.pairwise(turns):
            if following - v < T or v + p < start or v + T > len(schedule):
                continue
            case = {name: np.zeros(3) for name in PARTS}
            for age in range(p, T):
                a = each[v + age - start, :, j]
                three = np.array([-a.sum(), -a[a < 0].sum(), a[a > 0].sum()])
                near = age >= T - last
                far = not near and min(age, T - age) >= T / 4
                case["whole"] += three
                case["predecessors" if near else "opposite" if far else "rest"] += three
            cases.append(case)
        for name in PARTS if cases else ():
            falls[name][:, j] = np.mean([case[name] for case in cases], axis=0)
        for age, values in at.items():
            if age < T:
                transfer[age, j] = np.mean(values)
    return {**falls, "transfer": transfer}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """With its shuffled control; T = 12."""
    settings = tiny(
        epochs=3,
        steps=2,
        documents={"count": 12, "held_out": 4, "tokens": 12, "min_tokens": 12},
        model={"depth": 1, "width": 16},
        recorders=["allocation"],
        optimizer={"lr": 0.3},
    )
    return rp.fit(settings, tmp_path_factory.mktemp("run"), control="shuffled")


def test_against_walking(run: rp.Run) -> None:
    runs = (run, *run.controls)
    dataset = Allocation(predecessors=2)(*runs)
    assert dataset.attrs["episodes"] == [12, 36]
    assert dataset.episodes_of.values.tolist() == [4, 2, 2, 0]  # ages 8 to 11
    found = []
    for r, of in enumerate(runs):
        each = of.allocation.allocated.values
        mlp = np.char.find(of.allocation["name"].values.astype(str), "mlp") >= 0
        for group, which in (("total", slice(None)), ("mlp", mlp)):
            walked = by_hand(of, each[:, which], 12, 8, 2)
            here = dataset.isel(run=r).sel(group=group)
            mean = np.nanmean(walked["transfer"], axis=1)
            np.testing.assert_allclose(here.transfer, mean, atol=1e-12)
            for name in PARTS:
                three = np.nanmean(walked[name], axis=1)
                ours = [here[side].sel(part=name) for side in ("fall", "help", "harm")]
                np.testing.assert_allclose(ours, three, atol=1e-12)
            if group == "total":
                found.append(walked["whole"][0])
                assert dataset.counted[r] == np.isfinite(found[-1]).sum()
    held_out = run.allocation.allocated[:, :, 12:].sum("module").mean()
    assert np.isclose(dataset.held_out.sel(group="total")[0], held_out)
    paired = np.isfinite(found[0]) & np.isfinite(found[1])
    assert 4 <= paired.sum() == dataset.paired[0]
    difference = dataset.fall_difference.sel(part="whole", group="total")[0]
    assert np.isclose(difference, (found[0] - found[1])[paired].mean())


def test_a_planted_predecessor_is_found_in_its_place(tmp_path: Path) -> None:
    """The last episode takes .2 nats off in one half of the weights and adds .05 in the other;
    nothing else does anything, and in the control nothing does."""
    run = rp.simulate("linear_documents", tmp_path / "run", documents=12, epochs=3)
    for of in (run, *run.controls):
        group: Any = zarr.open_group(of.path / "record.zarr", mode="r+")
        planted, losses = np.zeros((24, 2, 17)), np.full((37, 17), 1.0)
        if of.path == run.path:
            for k in range(24):
                planted[k, :, (k + 1) % 12] = -0.2, 0.05
        losses[13:] += planted.sum(axis=1).cumsum(axis=0)
        group["allocation/allocated"][:] = planted
        group["training/losses"][:] = losses
    run = rp.open_run(run.path)
    dataset = Allocation()(run, *run.controls)
    whole = dict.fromkeys(PARTS, 0.0) | {"whole": 1.0, "predecessors": 1.0}
    for part, share in whole.items():
        of = dataset.sel(part=part).isel(run=0)
        for group, fall, help, harm in (
            ("total", 0.15, 0.2, 0.05),
            ("attention", 0.2, 0.2, 0.0),
            ("mlp", -0.05, 0.0, 0.05),
        ):
            here = [float(of[side].sel(group=group)) for side in ("fall", "help", "harm")]
            np.testing.assert_allclose(here, np.array([fall, help, harm]) * share, atol=1e-12)
        other = dataset.sel(part=part, group="total")
        assert not other.fall[1]
        assert np.isclose(other.fall_difference[0], 0.15 * share)
    assert np.isclose(dataset.transfer.sel(group="total", age=11)[0], -0.15)
    assert not dataset.transfer.sel(age=slice(0, 10)).any()
