"""transplant: against surgery on plain Hugging Face models, against what is planted in a network,
and Shapley values against all orders."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from conftest import tiny
from explained import said
from networks import SHAPES, local_model
from recovery_probe_analyses.transplant import SCALES, Transplant
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import exchange, models, stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.modules import KINDS, parameter_blocks, parameter_kinds
from recovery_probe.record.folder import checkpoint_folder
from recovery_probe.training import Training

T = 6
# In its last wait, the third, documents are forgotten and come back, by .14 nats on average.
SHAPE: dict[str, Any] = {
    "seed": 1,
    "steps": 10,
    "epochs": 4,
    "documents": {"count": T, "held_out": 0, "tokens": 16, "min_tokens": 16},
    "model": {"depth": 1, "width": 32},
    "optimizer": {"lr": 0.3},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A checkpoint after every episode; `controls` holds a shuffled one."""
    settings = tiny(**SHAPE, checkpoints={"every": "episode"})
    return rp.fit(settings, tmp_path_factory.mktemp("transplant"), control="shuffled")


@pytest.fixture(scope="module")
def found(run: rp.Run) -> xr.Dataset:
    return of(run, *run.controls, documents=T)


def of(*runs: rp.Run, **settings: Any) -> xr.Dataset:
    few: dict[str, Any] = {"documents": 3, "orders": 4}
    return Transplant(from_checkpoint=True, **{**few, **settings})(*runs)


def moments(found: xr.Dataset, run: rp.Run) -> Iterator[tuple[int, int, int]]:
    """Document, episodes done at its peak and at its arrival, by walking back from the end."""
    for j in np.flatnonzero(np.isfinite(found.document_bump.values[0])):
        turns = np.flatnonzero(run.schedule.values == j)
        yield int(j), int(turns[-2] + found.peak_age.values[0, j]), int(turns[-1])


def test_all_groups_together_are_the_bump(found: xr.Dataset, run: rp.Run) -> None:
    own = found.isel(run=0)
    bump = own.document_bump.values
    for way in ("restored", "lost", "shapley"):
        assert np.array_equal(own[f"document_{way}"].sel(group="all"), bump, equal_nan=True)
    assert own.looked_at == T
    losses = run.losses.values
    for j, peak, arrival in moments(found, run):
        np.testing.assert_allclose(bump[j], losses[peak, j] - losses[arrival, j], atol=1e-5)
        others = np.delete(np.arange(T), j)
        begins = [np.flatnonzero(run.schedule.values == k)[-2] for k in others]
        mean = [losses[np.array(begins) + age, others].mean() for age in range(1, T)]
        assert own.peak_age.values[j] == 1 + np.argmax(mean), "not where others have their top"


def test_shapley_values_sum_to_the_whole_exact_and_drawn(found: xr.Dataset, run: rp.Run) -> None:
    exact = of(run, documents=1, orders=40)
    assert not exact.sampling_error.values.any()
    assert found.sampling_error.sel(group="MLP in", run="cyclic") > 0
    for dataset in (found, exact):
        for among in dataset.partition.values:
            nats = dataset.document_shapley.values[..., dataset.among.values == among].sum(axis=-1)
            whole = dataset.document_restored.sel(group="all").values
            np.testing.assert_allclose(nats, whole, atol=1e-6)
    # What is alone does not depend on how Shapley values are made.
    for way in ("restored", "lost"):
        both = (d[f"document_{way}"].values[0, 0] for d in (found, exact))
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("group", ["MLP in", "attention OV", "norms"])
def test_surgery_on_a_plain_model_is_the_same(group: str, found: xr.Dataset, run: rp.Run) -> None:
    parts = {
        "MLP in": ["dense_h_to_4h.weight"],
        "attention OV": ["query_key_value.weight", "attention.dense.weight"],
        "norms": ["layernorm.", "layer_norm."],
    }

    def swapped(base: Path, other: Path) -> float:
        model, donor = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (base, other))
        its = donor.state_dict()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if any(part in name for part in parts[group]):
                    here, there = tensor, its[name]
                    if "query_key_value" in name:  # (head, q or k or v, …): v alone
                        here, there = (t.view(2, 3, 16, 32)[:, 2] for t in (here, there))
                    here.copy_(there)
            tokens = torch.tensor(run.record.tokens.values)[j]
            return F.cross_entropy(model(tokens[None]).logits[0, :-1], tokens[1:]).item()

    j, *rows = next(moments(found, run))
    peak, arrival = (checkpoint_folder(run.path, row) for row in rows)
    own = found.sel(run="cyclic", group=group, document=j)
    restored = swapped(peak, peak) - swapped(peak, arrival)
    lost = swapped(arrival, peak) - swapped(arrival, arrival)
    np.testing.assert_allclose(own.document_restored, restored, atol=1e-5)
    np.testing.assert_allclose(own.document_lost, lost, atol=1e-5)


def test_shares_are_sums_before_ratios_beside_the_control(found: xr.Dataset) -> None:
    bump = np.nanmean(found.document_bump.values[0])
    assert bump > stats.MIN_FORGETTING
    for r, name in enumerate(found.run.values):
        own = np.nanmean(found.document_restored.values[r], axis=0) / bump
        np.testing.assert_allclose(found.restored.sel(run=name), own)
    both = found.restored.values
    np.testing.assert_allclose(found.restored_difference.values[0], both[0] - both[1])
    among = found.among.values
    left = 1 - both[0, among == "kinds"].sum()
    np.testing.assert_allclose(found.interaction.sel(run="cyclic", partition="kinds"), left)
    part = estimate.get(found, "restored", run="cyclic", group="norms")
    assert part.low <= part.value <= part.high
    assert part.null == estimate.get(found, "restored_random", run="cyclic", group="norms").value


def test_no_share_is_told_of_a_bump_that_may_be_none(found: xr.Dataset) -> None:
    said = {}
    for low in (0.01, -0.01):
        dataset = found.copy(deep=True)
        dataset["bump_low"][0] = low
        said[low] = Transplant().verdict(dataset)
    assert "comes back with" in said[0.01]
    assert said[-0.01].endswith(
        "may be no bump: shares of it, as the figure has them, say nothing."
    )


def test_between_checkpoints_the_run_is_trained_again(
    found: xr.Dataset, run: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers with one checkpoint, after the first epoch: also what is visited in between
    leaves training as it was."""
    shutil.copytree(run.path, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        if folder.name != checkpoint_folder(run.path, T).name:
            shutil.rmtree(folder)
    thinned = rp.open_run(tmp_path / "run")
    assert thinned.checkpoints == [T]
    again = of(thinned, documents=T)
    said = capsys.readouterr().err
    assert said.count("bit for bit") == 1
    assert "episodes are trained again, from the checkpoint after 6" in said
    assert "passes of one document each: about" in said
    for name in ("bump", "restored", "lost_random", "shapley"):
        values = found[f"document_{name}"].values[:1]
        np.testing.assert_array_equal(again[f"document_{name}"], values)


def test_where_one_group_is_trained_it_has_it_all(tmp_path: Path) -> None:
    held = [
        *("embed", "unembed", "ln_final", "*.ln1", "*.ln2", "*.attn", "*.mlp.in", "*.mlp.out.bias")
    ]
    settings = tiny(
        **{**SHAPE, "epochs": 2},
        interventions=["freeze"],
        freeze={"modules": held},
    )
    found = of(rp.fit(settings, tmp_path / "run"), documents=2).isel(run=0)
    bump = found.document_bump.values
    assert np.nanmax(np.abs(bump)) > 0.001
    kinds = found.isel(group=np.flatnonzero(found.among.values == "kinds"))
    for way in ("restored", "lost", "shapley"):
        for group in kinds.group.values:
            own = kinds[f"document_{way}"].sel(group=group).values
            expected = bump if group == "MLP out" else np.where(np.isfinite(bump), 0.0, np.nan)
            np.testing.assert_array_equal(own, expected, err_msg=f"{way} {group}")
            random = kinds[f"document_{way}_random"].sel(group=group)
            assert group == "MLP out" or not random.fillna(0).any()


SCALES_ONE = """
import math, torch
from recovery_probe.interventions import Intervention

class Breathes(Intervention):
    name = "breathes"

    def start(self, training):
        self.first = {n: p.detach().clone() for n, p in training.model.parameters.items()}

    def state(self):
        return {"first": self.first}

    def restore(self, state):
        self.first = state["first"]

    def weights(self, step):
        size = 1 + 0.9 * math.cos(2 * math.pi * (step.episode + 1) / 6)
        with torch.no_grad():
            for name, parameter in step.model.parameters.items():
                factor = 2 * size if name == "unembed.weight" else 1.0
                parameter.copy_(factor * self.first[name])
"""


def test_a_matrix_that_is_scaled_alone_comes_back_by_its_norm(tmp_path: Path) -> None:
    file = tmp_path / "breathes.py"
    file.write_text(SCALES_ONE)
    run = rp.fit(
        tiny(**{**SHAPE, "epochs": 2}, interventions=[f"{file}:Breathes"]), tmp_path / "run"
    )
    found = of(run, documents=2).isel(run=0)
    bump = found.document_bump.values
    seen = np.isfinite(bump)
    assert np.abs(bump[seen]).max() > 0.02
    expected = {"matrix norms": bump, "unembedding": bump, "matrix directions": 0 * bump}
    expected |= {"norm gains": 0 * bump, "norms": 0 * bump, "embedding": 0 * bump}
    for group, values in expected.items():
        for way in ("restored", "lost"):
            own = found[f"document_{way}"].sel(group=group).values
            np.testing.assert_allclose(own[seen], values[seen], atol=1e-4, err_msg=group)


def test_a_fall_that_is_of_norms_alone_is_told(tmp_path: Path) -> None:
    """Logits that get smaller all the time: nothing else brings a loss down."""
    file = tmp_path / "breathes.py"
    file.write_text(
        SCALES_ONE.replace(
            "1 + 0.9 * math.cos(2 * math.pi * (step.episode + 1) / 6)", "0.5 - step.episode / 30"
        )
    )
    run = rp.fit(
        tiny(**{**SHAPE, "epochs": 2}, interventions=[f"{file}:Breathes"]), tmp_path / "run"
    )
    assert said("H5", transplant=of(run)) == "supported"


def test_a_random_displacement_goes_as_far_and_all_comes_back(run: rp.Run) -> None:
    training = Training.at(run, 3)
    before = {n: p.detach().clone() for n, p in training.model.parameters.items()}
    peak = {n: p + 0.1 * torch.randn_like(p) for n, p in before.items()}
    counted: list[Any] = []
    partitions = {"kinds": parameter_kinds(before), "blocks": parameter_blocks(before, 7)}
    made = exchange.Exchange(training, 1, peak, run.rng("test"), lambda: counted.append(1))
    with made as both:
        for base, target in ((both.peak, both.arrival), (both.arrival, both.peak)):
            away = both.displaced(base, target)
            for name in before:
                far, wanted = (torch.linalg.norm(s(name) - base(name)) for s in (away, target))
                torch.testing.assert_close(far, wanted, rtol=1e-4, atol=1e-6)
                other = away(name) - base(name)
                cosine = F.cosine_similarity(
                    other.flatten(), (target(name) - base(name)).flatten(), dim=0
                )
                assert abs(cosine) < 6 / np.sqrt(other.numel())
            scaled = both.scaled(base, target)
            for name in before:
                torch.testing.assert_close(
                    torch.linalg.norm(scaled(name)), torch.linalg.norm(target(name))
                )
                torch.testing.assert_close(
                    F.normalize(scaled(name).flatten(), dim=0),
                    F.normalize(base(name).flatten(), dim=0),
                )
        both.everything(partitions, [], 4)
    assert len(counted) <= exchange.passes(partitions.values(), 4)
    assert all(torch.equal(p, before[n]) for n, p in training.model.parameters.items())


@pytest.mark.parametrize("architecture", SHAPES)
def test_every_parameter_is_in_one_group(architecture: str, tmp_path: Path) -> None:
    folder = local_model(tmp_path / architecture, architecture)
    settings = tiny(model={"source": str(folder)}, documents={"tokens": 16})
    names = list(models.load(settings).parameters)
    kinds, blocks = parameter_kinds(names), parameter_blocks(names, 7)
    for groups in (kinds, blocks):
        assert sorted(n for own in groups.values() for n in own) == sorted(names)
    tied, bias = architecture != "gpt_neox", architecture != "llama"
    absent = {"rest", *(["unembedding"] if tied else []), *([] if bias else ["biases"])}
    assert list(kinds) == [kind for kind in KINDS if kind not in absent]
    assert list(blocks) == ["block 0", "block 1", "outside blocks"]
    gated = {"blocks.0.mlp.gate.weight"} if architecture == "llama" else set()
    block = {n for n in kinds["MLP in"] if n.startswith("blocks.0")}
    assert block == {"blocks.0.mlp.in.weight", *gated}
    assert {n.rpartition(".")[0] for n in kinds["attention QK"]} == {
        f"blocks.{b}.attn.{part}" for b in (0, 1) for part in "qk"
    }
    assert {n.rpartition(".")[2] for n in kinds["norms"]} == {"weight", *(["bias"] * bias)}


def test_many_blocks_are_put_together() -> None:
    names = [f"blocks.{b}.mlp.in.weight" for b in range(30)] + ["embed.weight"]
    groups = parameter_blocks(names, 7)
    bounds = [(b, b + 4) for b in range(0, 30, 5)]
    assert list(groups) == [*(f"blocks {a} to {b}" for a, b in bounds), "outside blocks"]
    assert [name for own in groups.values() for name in own] == names
    assert list(parameter_blocks(names[:9], 4)) == [
        *("blocks 0 to 2", "blocks 3 to 5", "blocks 6 to 8")
    ]
    assert list(parameter_blocks(names[:5], 4)) == ["blocks 0 to 1", "blocks 2 to 3", "block 4"]
    assert len(parameter_blocks(names, 30)) == 31


def test_blocks_put_together_are_put_in_together(tmp_path: Path) -> None:
    deep = {**SHAPE, "epochs": 3, "model": {"depth": 3, "width": 32}}
    run = rp.fit(tiny(**deep, checkpoints={"every": "episode"}), tmp_path / "run")
    found = of(run, documents=1, orders=40, blocks=2).isel(run=0)
    among = found.among.values == "blocks"
    assert found.group.values[among].tolist() == ["blocks 0 to 1", "block 2", "outside blocks"]
    ((j, *rows),) = moments(found.expand_dims("run"), run)
    peak, arrival = (Training.at(run, row) for row in rows)
    before = peak.losses(slice(j, j + 1)).item()
    with torch.no_grad():
        for name, parameter in peak.model.parameters.items():
            if name.startswith(("blocks.0.", "blocks.1.")):
                parameter.copy_(arrival.model.parameters[name])
    restored = before - peak.losses(slice(j, j + 1)).item()
    own = found.sel(group="blocks 0 to 1", document=j)
    np.testing.assert_allclose(own.document_restored, restored, atol=1e-5)


def test_names_that_no_rule_knows_are_the_rest() -> None:
    names = ["blocks.0.mixer.A", "blocks.0.attn.q_norm.weight", "blocks.0.attn.qkv.weight"]
    assert parameter_kinds(names) == {"norms": names[1:2], "rest": [names[0], names[2]]}


def test_shapley_values_are_means_over_all_orders() -> None:
    values = np.random.default_rng(0).normal(size=2**5)
    every = np.array(list(itertools.permutations(range(5))))
    added = np.array([stats.added_in_order(values.__getitem__, order) for order in every])
    found = stats.shapley(values)
    np.testing.assert_allclose(found, added.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.sum(), values[-1] - values[0])


def test_drawn_orders_come_near_within_their_error() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=2**6).cumsum()
    away = []
    for _ in range(60):
        orders = stats.antithetic_orders(6, 80, rng)
        assert (orders[::2] == orders[1::2, ::-1]).all()
        added = np.array([stats.added_in_order(values.__getitem__, o) for o in orders])
        drawn, error = stats.shapley_of_orders(added)
        np.testing.assert_allclose(drawn.sum(), values[-1] - values[0])
        away.append((drawn - stats.shapley(values)) / error)
    assert 0.8 < np.std(away) < 1.2
    assert abs(np.mean(away)) < 0.2


def test_a_ratio_of_means_of_other_documents() -> None:
    """In closed form: the parts are of documents 0 and 1, the whole of 2 and 3."""
    part = np.array([1.0, 3.0, np.nan, np.nan])
    whole = np.array([np.nan, np.nan, 4.0, 4.0])
    rng = np.random.default_rng(0)
    value, low, high = stats.ratio_of_means(np.stack([part, 2 * part], axis=1), whole, rng)
    np.testing.assert_allclose(value, [0.5, 1.0])
    np.testing.assert_allclose((low, high), ([0.25, 0.5], [0.75, 1.5]))
    value, *_ = stats.ratio_of_means(part, whole, rng, minus=whole)
    np.testing.assert_allclose(value, (2 - 4) / 4)
    assert set(SCALES) == {"matrix norms", "matrix directions", "norm gains"}
