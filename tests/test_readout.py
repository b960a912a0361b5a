"""What is left of recovery once temperature and bias are set right: planted in logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from conftest import tiny
from explained import said
from recovery_probe_analyses.readout import Readout

import recovery_probe as rp
from recovery_probe import readings
from recovery_probe.analyze import estimate
from recovery_probe.record.layout import EPISODE, Array
from recovery_probe.recorders.readout import ARRAYS
from recovery_probe.simulations import Drawn, Recorded, Simulation

T, C, V, CYCLES = 8, 40, 24, 3


@dataclass
class Planted(Simulation):
    """Logits of 8 documents of random tokens that tell the right one by a margin, and what happens
    to them by age, 1 to T: up to the top at 5, and some of the way back."""

    name = "planted_readout"
    # what: temperature, bias or inside
    what: str = "inside"

    def draw(self, seed: int | None = None) -> dict[str, Drawn]:
        rng = np.random.default_rng(3)
        phase = 2 * np.pi * np.arange(T) / T
        # Documents on a ring: each has more of the tokens that are near its own place there.
        ring = np.cos(phase[:, None] - 2 * np.pi * np.arange(V) / V)
        usual = np.exp(1.5 * ring)
        usual /= usual.sum(axis=1, keepdims=True)
        tokens = np.stack([rng.choice(V, C, p=p) for p in usual])
        base = rng.normal(size=(T, C, V))
        base[np.arange(T)[:, None], np.arange(C - 1), tokens[:, 1:]] += 3
        hit = rng.normal(size=base.shape)
        inputs = {"tokens": torch.tensor(tokens), "mask": torch.ones(T, C, dtype=torch.bool)}
        classes = readings.Classes.of(inputs)
        bump = np.array([0, 1, 2, 3, 4, 3, 2, 1]) / 4  # by age less 1
        drawn = {}
        for kind, order in self.orders(seed or 0).items():
            last, rows = np.full(T, -1), []
            for now, document in enumerate([-1, *order]):
                if document >= 0:
                    last[document] = now
                age = np.clip(now - last, 0, T - 1)
                z = base.copy()
                if self.what == "temperature":
                    z *= (1 + 2 * bump[age])[:, None, None]
                elif self.what == "bias":  # towards what the latest documents have
                    z += 2 * ring[order[max(now - 1, 0)]]
                else:
                    z += 2 * bump[age][:, None, None] * hit
                found = readings.of_documents(
                    lambda z=z: [(torch.tensor(z), inputs)], classes, 0.01
                )
                rows.append({name: values.numpy() for name, values in found.items()})
            each = {name: np.stack([row[name] for row in rows]) for name in ARRAYS}
            arrays = {
                name: (Array(EPISODE, ("document",), (T,), about, units, "float64"), each[name])
                for name, (about, units) in ARRAYS.items()
            }
            recorded = {"readout": Recorded(arrays, {}, {"epochs": 0})}
            train = np.zeros(len(order) * self.steps)
            drawn[kind] = Drawn(order, each["loss"], train, recorded)
        return drawn


@pytest.fixture(scope="module", params=["temperature", "bias", "inside"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Planted(documents=T, held_out=0, epochs=CYCLES, steps=1, what=request.param)
    run = rp.simulate(made, tmp_path_factory.mktemp("planted"))
    return request.param, Readout()(run, *run.controls)


def test_what_is_planted_is_told(planted: Any) -> None:
    what, dataset = planted
    cyclic = dataset.isel(run=0)
    assert cyclic.regained.sel(reading="loss") > 0.2
    left = {name: float(cyclic.left.sel(reading=name)) for name in ("tempered", "biased", "both")}
    assert cyclic.left.sel(reading="loss").item() == pytest.approx(1)
    if what == "temperature":
        assert abs(left["tempered"]) < 1e-3
        assert left["biased"] > 0.6
        assert left["both"] < 0.3  # the bias is fitted before the temperature is right
        # The right tokens stand where they stood.
        assert np.ptp(cyclic.by_age.sel(reading="log_rank").values) < 1e-9
    elif what == "bias":
        assert abs(left["biased"]) < 0.1
        assert abs(left["both"]) < 0.15
        assert left["tempered"] > 0.5
    else:
        assert left["tempered"] > 0.5
        assert left["biased"] > 0.8
        assert cyclic.score.sel(reading="log_rank") > 0.5
    verdict = Readout().summary(dataset)["verdict"]
    assert f"{estimate.get(cyclic, 'left', reading='tempered')} with each document's" in verdict
    assert "one run decides nothing" not in verdict
    word = said("H4", readout=dataset)
    assert word == "supported" if what != "inside" else word != "supported"


def test_each_reading_is_what_an_optimiser_finds() -> None:
    """Against scipy, a plain loop and sorted logits, of documents of different lengths."""
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 12, (5, 9), generator=draws)
    mask = torch.arange(9) < torch.tensor([9, 7, 9, 4, 8])[:, None]
    inputs = {"tokens": tokens, "mask": mask}
    z = 2 * torch.randn(5, 9, 15, generator=draws, dtype=torch.float64)
    z.scatter_add_(2, tokens.roll(-1, 1)[..., None], 2 + z.new_zeros(5, 9, 1))
    halves = [(z[i : i + 3], {n: v[i : i + 3] for n, v in inputs.items()}) for i in (0, 3)]
    found = readings.of_documents(lambda: halves, readings.Classes.of(inputs), 0.5)
    right = [tokens[d, 1 : int(mask[d].sum())].numpy() for d in range(5)]
    logits = [z[d, : len(right[d])].numpy() for d in range(5)]

    def loss(d: int, bias: Any = 0.0, beta: float = 1.0) -> float:
        at = beta * logits[d] + bias
        chosen = at[np.arange(len(at)), right[d]]
        return float((np.log(np.exp(at).sum(axis=1)) - chosen).mean())

    for d in range(5):
        assert found["loss"][d].item() == pytest.approx(loss(d))
        best = scipy.optimize.minimize_scalar(
            lambda b, d=d: loss(d, beta=b), bounds=(1 / 20, 20), options={"xatol": 1e-9}
        )
        assert found["tempered"][d].item() == pytest.approx(best.fun, abs=1e-6)
        assert 1 / found["temperature"][d].item() == pytest.approx(best.x, rel=1e-3)
        ranks = [
            np.argsort(-row).tolist().index(r) for row, r in zip(logits[d], right[d], strict=True)
        ]
        assert found["log_rank"][d].item() == pytest.approx(np.log(np.array(ranks) + 1).mean())
        assert found["accuracy"][d].item() == pytest.approx((np.array(ranks) == 0).mean())
    used = np.unique(np.concatenate(right))
    rest = np.setdiff1d(np.arange(15), used)
    for d in (0, 3):
        others = [o for o in range(5) if o != d]
        number = sum(len(right[o]) for o in others)

        def bias(free: Any) -> Any:
            whole = np.zeros(15)
            whole[used], whole[rest] = free[:-1], free[-1]
            return whole

        def total(free: Any, others: Any = others, number: int = number) -> float:
            fits = sum(loss(o, bias(free)) * len(right[o]) for o in others)
            return float(fits + 0.25 * (free**2).sum()) / number

        found_bias = bias(scipy.optimize.minimize(total, np.zeros(len(used) + 1), tol=1e-12).x)
        assert found["biased"][d].item() == pytest.approx(loss(d, found_bias), abs=1e-4)
        best = scipy.optimize.minimize_scalar(
            lambda b, d=d, shift=found_bias: loss(d, b * shift, b), bounds=(1 / 20, 20)
        )
        assert found["both"][d].item() == pytest.approx(best.fun, abs=1e-4)


def test_a_loss_that_falls_to_the_end_is_taken_there() -> None:
    """Of a document whose right tokens are all the likeliest, or all the least likely."""
    tokens = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    z = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    z[0].scatter_(1, tokens[0].roll(-1)[:, None], 3.0)
    z[1].scatter_(1, tokens[1].roll(-1)[:, None], -3.0)
    at = readings.Positions.of(z, {"tokens": tokens, "mask": torch.ones_like(tokens) > 0})
    losses, beta = at.best(at.z)
    np.testing.assert_allclose(beta[:2], [20, 1 / 20], rtol=1e-6)
    assert 1 / 19 < beta[2] < 19
    for d, b in enumerate(beta[:2]):
        own = F.cross_entropy(b * z[d, :-1], tokens[d, 1:])
        torch.testing.assert_close(losses[d], own.double(), rtol=1e-5, atol=1e-7)


def test_it_is_recorded_of_the_last_epochs_and_replayed(tmp_path: Path) -> None:
    settings = tiny(recorders=["checkpoints", "readout"], eval_batch=3)
    run = rp.fit(settings, tmp_path / "run")
    found = run.recorder("readout").load()
    assert found.episodes_done.values.tolist() == list(range(6, 16))
    np.testing.assert_allclose(found.loss, run.losses.sel(episodes_done=slice(6, 15)), atol=1e-5)
    assert (found.tempered <= found.loss + 1e-6).all()
    assert Readout()(run).counted.values.tolist() == [5]
    # Of more epochs, the last ones begin later: what both have is taken over.
    whole = rp.fit(
        tiny(recorders=["checkpoints", "readout"], eval_batch=3, epochs=4), tmp_path / "4"
    )
    longer = rp.fit(whole.config, run.path, resume=True).recorder("readout")
    assert longer.episodes_done.values.tolist() == list(range(11, 21))
    assert longer.load().drop_attrs().equals(whole.recorder("readout").load().drop_attrs())


def test_what_is_missing_is_said_with_the_mend(pair: rp.Run, tmp_path: Path) -> None:
    plain = rp.fit(tiny(recorders=["checkpoints"]), tmp_path / "plain")
    with pytest.raises(rp.Missing, match=r"--record readout --episodes 5:15 adds it"):
        Readout()(plain)
    plain.replay(record=["readout"], episodes=(10, 15))
    with pytest.raises(rp.Missing, match=r"10:15 alone; .* --episodes 5:15 --overwrite"):
        Readout()(plain)
    plain.replay(record=["readout"], episodes=(5, 15), overwrite=True)
    assert Readout()(plain).counted.values.tolist() == [5]
    one = tiny(recorders=["readout"], readout={"epochs": 1})
    with pytest.raises(rp.Missing, match=r"readout.epochs = 1 leaves out .* --readout.epochs 2"):
        Readout()(rp.fit(one, tmp_path / "one"))
