"""What simulations draw: closed forms, brute force, and the numbers they are known for."""

from __future__ import annotations

import numpy as np
import pytest

from recovery_probe import plugins, stats
from recovery_probe.simulations import Drawn, Simulation
from recovery_probe.simulations.age_only import AgeOnly
from recovery_probe.simulations.common_shock import CommonShock
from recovery_probe.simulations.decelerating_drift import DeceleratingDrift
from recovery_probe.simulations.drift import Drift
from recovery_probe.simulations.linear_documents import LinearDocuments
from recovery_probe.simulations.planar_ring import PlanarRing

NAMES = sorted(plugins.installed("simulations"))


def curve_scores(drawn: Drawn, T: int) -> stats.Floats:
    """(E-1,): recovery score of the averaged curve of a cyclic run."""
    aligned = stats.shift_aligned(drawn.losses[:, :T], drawn.schedule)
    return stats.recovery_of_curve(aligned.mean(axis=1), T)[0]


def per_document(drawn: Drawn, T: int, epoch: int = 5) -> float:
    scores = stats.recovery_per_document(drawn.losses[:, :T], drawn.schedule)[0][epoch - 1]
    return float(np.nanmean(scores))


def drawn_by(name: str) -> dict[str, Drawn]:
    made: Simulation = plugins.find("simulations", name)()
    return made.draw(3)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_and_its_control_share_all_but_the_order(name: str) -> None:
    cyclic, shuffled = drawn_by(name).values()
    np.testing.assert_array_equal(cyclic.losses[0], shuffled.losses[0])
    np.testing.assert_array_equal(cyclic.schedule, np.tile(np.arange(20), 6))
    epochs = shuffled.schedule.reshape(6, 20)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(20), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6
    assert len(set(epochs[:, 0])) > 1  # no document kept first
    for drawn in (cyclic, shuffled):
        assert drawn.losses.shape == (121, 25)
        assert drawn.train_loss.shape == (1200,)
        # An episode's first training loss is that of its document just before.
        before = drawn.losses[np.arange(120), drawn.schedule]
        np.testing.assert_allclose(drawn.train_loss[::10], before, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    again, other = drawn_by(name), plugins.find("simulations", name)().draw(4)
    for kind, drawn in drawn_by(name).items():
        np.testing.assert_array_equal(drawn.losses, again[kind].losses)
        assert (drawn.schedule != other[kind].schedule).any() == (kind == "shuffled")


def brute(simulation: LinearDocuments, seed: int, order: np.ndarray) -> dict[str, np.ndarray]:
    """Gradient steps on the whole weight vector, one after the other."""
    problem = simulation.problem(seed)
    X, y, w, q = problem.X, problem.y, problem.start.copy(), simulation.equations
    half = len(w) // 2
    sees: dict[str, list[np.ndarray]] = {n: [] for n in ("losses", "train", "w", "first", "inner")}

    def after() -> None:
        errors = [x @ w - t for x, t in zip(X, y, strict=True)]
        gradients = np.stack([x.T @ error / q for x, error in zip(X, errors, strict=True)])
        sees["losses"].append(np.array([(error**2).mean() / 2 for error in errors]))
        sees["w"].append(w.copy())
        parts = (gradients[:, :half], gradients[:, half:])
        sees["inner"].append(np.stack([g @ g.T for g in parts]))

    after()
    for k in order:
        for m in range(simulation.steps):
            error = X[k] @ w - y[k]
            gradient = X[k].T @ error / q
            sees["train"].append((error**2).mean() / 2)
            if m == 0:
                sees["first"].append(gradient)
            w = w - simulation.lr * gradient
        after()
    return {name: np.array(values) for name, values in sees.items()}


@pytest.mark.parametrize("weights", [3, 7, 40])  # fewer than the equations, odd, and plenty
def test_linear_documents_are_gradient_descent(weights: int) -> None:
    simulation = LinearDocuments(
        documents=3, held_out=2, epochs=2, steps=4, equations=5, weights=weights, lr=0.2
    )
    for drawn in simulation.draw(1).values():
        found = brute(simulation, 1, drawn.schedule)
        close = {"rtol": 1e-9, "atol": 1e-12}
        np.testing.assert_allclose(drawn.losses, found["losses"], **close)
        np.testing.assert_allclose(drawn.train_loss, found["train"], **close)
        half = found["w"].shape[1] // 2
        for name, vectors in (
            ("weight_deltas", np.diff(found["w"], axis=0)),
            ("gradients", found["first"]),
        ):
            (_, sketched), (_, norm) = drawn.recorded[name].rows.values()
            for module, true in enumerate((vectors[:, :half], vectors[:, half:])):
                own = sketched[:, module]
                np.testing.assert_allclose(own @ own.T, true @ true.T, **close)
                np.testing.assert_allclose(norm[:, module], np.linalg.norm(true, axis=1), **close)
        # The same basis for both.
        first = drawn.recorded["gradients"].rows["sketched"][1].reshape(len(drawn.schedule), -1)
        true = np.diff(found["w"], axis=0) @ found["first"].T
        np.testing.assert_allclose(drawn.updates @ first.T, true, **close)
        inner = drawn.recorded["document_gradients"].rows["inner"][1]
        np.testing.assert_allclose(inner, found["inner"][::3], **close)
        tokens = drawn.recorded["token_losses"].rows["loss"][1]
        np.testing.assert_allclose(tokens.mean(axis=2), drawn.losses, **close)
        problem, stream = simulation.problem(1), drawn.recorded["residual_stream"].rows
        w = found["w"]
        np.testing.assert_allclose(stream["final"][1][..., 0], w @ problem.X[0].T, **close)
        before = zip(drawn.schedule, w[:-1], strict=True)
        means = [problem.X[k].mean(axis=0) @ now for k, now in before]
        np.testing.assert_allclose(stream["residual"][1][:, 0, 0], means, **close)


def test_documents_are_alike_by_the_share() -> None:
    problem = LinearDocuments(share=0.3, documents=15, weights=200).problem(0)
    same = np.einsum("iqd,jqd->ij", problem.X, problem.X) / problem.X.shape[1] ** 2
    apart = same[~np.eye(len(same), dtype=bool)]
    np.testing.assert_allclose(np.diag(same), 1, atol=0.05)
    np.testing.assert_allclose(apart, 0.3, atol=0.05)


def test_least_squares_recover_what_they_share() -> None:
    """The statistical review's numbers: .27/.40/.51/.60/.67 by epoch, by another hand
    .25/.41/.52/.60/.66; sd over seeds .06, so .013 of the mean of 20."""
    of_seeds = [LinearDocuments(held_out=0).draw(seed) for seed in range(20)]
    scores = np.array([curve_scores(drawn["cyclic"], 20) for drawn in of_seeds])
    np.testing.assert_allclose(scores.mean(axis=0), [0.26, 0.405, 0.515, 0.60, 0.665], atol=0.04)
    assert scores.std(axis=0).max() < 0.1
    control = [per_document(drawn["shuffled"], 20) for drawn in of_seeds]
    assert np.mean(control) < 0.35  # a maximum over noise, in a wait of any length
    last = [stats.shift_aligned(d["cyclic"].losses, d["cyclic"].schedule).mean(1) for d in of_seeds]
    peak = [curve[81:101].argmax() / 19 for curve in last]
    assert 0.5 < np.mean(peak) < 0.65


@pytest.mark.parametrize(
    ("changes", "most"),
    [({"share": 0.0}, 0.01), ({"steps": 1}, 0.12), ({"lr": 0.03}, 0.12)],
    ids=["nothing shared", "one step", "small steps"],
)
def test_and_nothing_else(changes: dict[str, float], most: float) -> None:
    for seed in range(4):
        scores = curve_scores(LinearDocuments(held_out=0, **changes).draw(seed)["cyclic"], 20)
        assert not (scores > most).any()  # nor NaN, where nothing is forgotten


@pytest.mark.parametrize("T", [5, 25])
def test_the_planar_ring_has_a_closed_form(T: int) -> None:
    cyclic = PlanarRing(documents=T, held_out=2).draw()["cyclic"]
    t, place = np.arange(6 * T + 1)[:, None], np.append(np.arange(T), [0.5, 1.5])
    closed = np.cos(np.pi / T) ** (2 * t) * np.sin(np.pi * (t - 1 - place) / T) ** 2
    np.testing.assert_allclose(cyclic.losses, closed, atol=1e-12)
    if T == 25:
        aligned = stats.shift_aligned(cyclic.losses[:, :T], cyclic.schedule).mean(axis=1)
        scores, _ = stats.recovery_of_curve(aligned, T, min_forgetting=0)
        np.testing.assert_allclose(scores, 0.98696, atol=5e-6)
        every, _ = stats.recovery_per_document(cyclic.losses[:, :T], cyclic.schedule, 0)
        np.testing.assert_allclose(every, 0.98696, atol=5e-6)
    # The plane turns by π/T an episode, in each half of the weights.
    path = np.cumsum(cyclic.recorded["weight_deltas"].rows["sketched"][1], axis=0)
    assert path.shape == (6 * T, 2, 2)
    np.testing.assert_allclose(path[:, 0] @ path[:, 0].T, path[:, 1] @ path[:, 1].T, atol=1e-12)


def test_forgetting_by_age_alone() -> None:
    simulation = AgeOnly(noise=0, documents=4, held_out=1, epochs=2, tau=3.0)
    for drawn in simulation.draw().values():
        for row in range(9):
            for document in range(5):
                seen = [e for e in range(row) if drawn.schedule[e] == document]
                age = row - 1 - seen[-1] if seen else None
                loss = 8.0 if age is None else 6 - np.exp(-age / 3)
                assert drawn.losses[row, document] == pytest.approx(loss, abs=1e-12)


def test_a_planted_recovery_is_gain_on_arrival_and_no_excess() -> None:
    simulation = AgeOnly(noise=0, planted=0.4)
    by_age = {}
    for kind, drawn in simulation.draw().items():
        losses, ages = drawn.losses[:, :20], simulation.ages(drawn.schedule)[:, :20]
        of_ages = [losses[ages == age] for age in range(20)]
        assert max(np.ptp(losses) for losses in of_ages) < 1e-12  # of age alone
        by_age[kind] = np.array([losses[0] for losses in of_ages])
    gain = by_age["shuffled"] - by_age["cyclic"]
    np.testing.assert_allclose(gain[:15], 0, atol=1e-12)
    assert (np.diff(gain[14:]) > 0).all()
    assert gain[19] == pytest.approx(0.4 * (1 - np.exp(-19 / 4)), abs=1e-12)


@pytest.mark.parametrize(
    ("simulation", "document", "curve"),
    [
        (AgeOnly(noise=0.05), 0.06, 0.01),
        (AgeOnly(noise=0.2), 0.23, 0.05),
        (AgeOnly(noise=0.2, memory=0.8), 0.17, 0.03),
        (AgeOnly(noise=0.1, memory=1.0), 0.19, 0.02),
        (AgeOnly(noise=0.1, planted=0.5), 0.54, 0.49),
        (Drift(noise=0.02, fall=0.4), 0.17, 0.15),
        (Drift(noise=0.02, fall=0.6), 0.35, 0.33),
        (CommonShock(shock=0.1), 0.08, 0.01),
        (CommonShock(shock=0.2, noise=0.02), 0.13, 0.03),
    ],
    ids=str,
)
def test_scores_of_the_statistical_review(
    simulation: Simulation, document: float, curve: float
) -> None:
    """Its table of nulls, section 1."""
    of_seeds = [simulation.draw(seed)["cyclic"] for seed in range(40)]
    found = np.mean([per_document(drawn, 20) for drawn in of_seeds])
    assert found == pytest.approx(document, abs=0.025)
    found = np.mean([curve_scores(drawn, 20)[4] for drawn in of_seeds])
    assert found == pytest.approx(curve, abs=0.025)


def test_noise_with_a_memory() -> None:
    def noise(**settings: float) -> stats.Floats:
        kept = AgeOnly(held_out=0, documents=200, epochs=2, **settings)
        quiet = AgeOnly(held_out=0, documents=200, epochs=2, noise=0)
        return kept.draw(1)["cyclic"].losses - quiet.draw(1)["cyclic"].losses

    ar = noise(noise=0.2, memory=0.8)[1:]
    assert ar.std() == pytest.approx(0.2, abs=0.01)
    assert np.corrcoef(ar[:-1].ravel(), ar[1:].ravel())[0, 1] == pytest.approx(0.8, abs=0.02)
    walk = noise(noise=0.2, memory=1.0)
    document = np.arange(200)
    np.testing.assert_allclose(walk[document + 1, document], 0, atol=1e-12)  # right after
    later = [walk[d + 101, d] for d in range(200)]
    assert np.std(later) == pytest.approx(0.2 * np.sqrt(100), rel=0.15)


def test_weights_that_drift() -> None:
    for simulation, speed in (
        (Drift(rough=0.0), np.ones(120)),
        (DeceleratingDrift(rough=0.0, slowing=2.0), np.exp(-np.arange(120) / 40)),
    ):
        run, control = simulation.draw().values()
        np.testing.assert_allclose(np.linalg.norm(run.updates, axis=1), speed)
        np.testing.assert_allclose(run.updates, control.updates, atol=1e-12)  # one line for both
        assert np.linalg.matrix_rank(run.updates) == 1
    rough = Drift(rough=3.0).draw()["cyclic"].updates
    size = np.linalg.norm(rough - rough.mean(axis=0), axis=1)
    assert size.mean() == pytest.approx(3.0, rel=0.02)
    # All losses fall together: the held-out ones by as much, with no noise.
    for simulation, fallen in ((Drift(noise=0), 0.2 * 6), (DeceleratingDrift(noise=0), 1)):
        held_out = simulation.draw()["cyclic"].losses[:, 20:]
        np.testing.assert_allclose(held_out[0] - held_out[-1], fallen, atol=0.01)
        assert (np.diff(held_out, axis=0) < 0).all()
