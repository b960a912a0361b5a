"""How often the analyses err, measured: every one of them on processes in which the truth is known
(`simulations`), of a run's own shape, over and over."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recovery_probe import plugins, stats
from recovery_probe.analyze import plots
from recovery_probe.analyze.analysis import Analysis
from recovery_probe.analyze.salient import salient
from recovery_probe.errors import HookError, InputError, Missing
from recovery_probe.record.store import write_json
from recovery_probe.saying import along
from recovery_probe.schedules import document_of_episode
from recovery_probe.schedules.shuffled import Shuffled
from recovery_probe.seeds import generator
from recovery_probe.simulations import Order, Simulation
from recovery_probe.simulations.age_only import AgeOnly
from recovery_probe.simulations.common_shock import CommonShock
from recovery_probe.simulations.decelerating_drift import DeceleratingDrift
from recovery_probe.simulations.drift import Drift
from recovery_probe.simulations.linear_documents import LinearDocuments
from recovery_probe.simulations.writing import simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recovery_probe.record.run import Run

STORED = resources.files("recovery_probe.analyze") / "calibration.json"
KINDS = {"p": "p < .05", "interval": "interval without 0", "coverage": "interval with the mean"}
FALL = ("age_curve.matched_fall", "recovery.difference")
GAIN, EXCESS = ("age_curve.gain",), ("age_curve.excess",)
BY_AGE = (*FALL, *GAIN, *EXCESS)
BY_TURN = ("online_loss.difference", "token_recovery.total_regained_difference")
PAIRS = ("gradient_similarity.distance_r", "gradient_similarity.near_minus_far")
ROTATED = (
    "weight_cyclicity.cycle_share",
    "weight_cyclicity.period_share",
    "weight_cyclicity.order",
    "weight_residuals.stripe",
)
STEPS = ("step_sizes.staircase",)


@dataclass
class Reshuffled(LinearDocuments):
    """Linear documents in two random orders: what a control is beside another."""

    name = "reshuffled"

    def orders(self, seed: int) -> dict[str, Order]:
        rng = generator(seed, "two shuffles")
        return {
            kind: document_of_episode(Shuffled(), self.documents, self.epochs, rng)
            for kind in ("cyclic", "shuffled")
        }


@dataclass(frozen=True)
class Truth:
    """A process, and estimates (`analysis.estimate`) of it: those of which it plants nothing, so
    that what they find is a false alarm, and those that have something planted to find."""

    name: str
    kind: type[Simulation]
    settings: dict[str, Any] = field(default_factory=dict)
    nothing: tuple[str, ...] = ()
    planted: tuple[str, ...] = ()


TRUTHS = (
    Truth("forgetting by age", AgeOnly, {"noise": 0.1}, BY_AGE),
    Truth("the same, noise with a memory", AgeOnly, {"noise": 0.1, "memory": 0.8}, BY_AGE),
    Truth("drift", Drift, {}, BY_AGE),
    Truth("shock to all documents", CommonShock, {}, BY_AGE),
    Truth("decelerating drift", DeceleratingDrift, {}, ROTATED),
    Truth("least squares, nothing shared", LinearDocuments, {"share": 0.0}, PAIRS),
    Truth("two shuffles", Reshuffled, {}, (*BY_AGE, *BY_TURN, *PAIRS, *ROTATED, *STEPS)),
    *(  # all of it is gain on arrival
        Truth(
            f"{share:g} planted",
            AgeOnly,
            {"noise": 0.1, "planted": share},
            nothing=EXCESS,
            planted=(*FALL, *GAIN),
        )
        for share in (0.1, 0.25, 0.5)
    ),
    Truth(  # next to nothing of it is gain
        "least squares, half shared",
        LinearDocuments,
        planted=(*FALL, *EXCESS, *BY_TURN, *ROTATED),
    ),
)


@dataclass(frozen=True)
class Shape:
    """Of the runs that are simulated: T, H, E and M."""

    documents: int = 20
    held_out: int = 5
    epochs: int = 6
    steps: int = 10

    @classmethod
    def of(cls, run: Run) -> Shape:
        """That of a run."""
        c = run.config
        return cls(c.documents.count, c.documents.held_out, c.epochs, c.steps)


def calibrate(
    shape: Shape,
    draws: int,
    out: Path,
    analyses: Sequence[Analysis] = (),
    truths: Sequence[Truth] = (),
) -> dict[str, Any]:
    """Draw every truth `draws` times in this shape (all of `TRUTHS`, when none is given), put
    analyses to each (those of which it plants nothing or something, when none is given), and write
    `out/calibration.json` and the figure. What the file has already of the same shape and as many
    draws is kept: an interrupted one goes on where it stopped. Returns what the file holds:
    `shape`, `draws` and `rows`.

    A row: truth, analysis, estimate, `kind` (p: how often p < .05; interval: how often the interval
    is without the null; coverage: how often it holds the mean of all draws), `role` (`nothing` or
    `planted`, or neither), draws, rate, and its 95% interval low, high (Clopper and Pearson).

    Raises `InputError` where the file is of another shape, number of draws or choice of analyses,
    or damaged; `HookError` where an analysis fails.
    """
    asked = {"shape": asdict(shape), "draws": draws, "analyses": [a.name for a in analyses]}
    table: dict[str, Any] = asked | {"rows": []}
    path = out / "calibration.json"
    if path.exists():
        table = _read(path)
        if others := [
            f"{name} {table.get(name)}" for name in asked if table.get(name) != asked[name]
        ]:
            raise InputError(f"{path}: is of {', '.join(others)}: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for truth in truths or TRUTHS:
        if truth.name not in {row["truth"] for row in table["rows"]}:
            table["rows"] += _of_truth(truth, shape, draws, analyses or _of(truth))
            write_json(path, table)
    plots.write(draw(table), out / "calibration")
    return table


def _read(path: Path) -> dict[str, Any]:
    try:
        table = dict(json.loads(path.read_text("utf-8")))
        [row["truth"] for row in table["rows"]]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: damaged; delete it, or choose another --out") from None
    return table


def _of(truth: Truth) -> list[Analysis]:
    """The analyses whose estimates it names."""
    names = dict.fromkeys(name.partition(".")[0] for name in (*truth.nothing, *truth.planted))
    return [plugins.made(plugins.find("analyses", name), {}, name) for name in names]


def _of_truth(
    truth: Truth, shape: Shape, draws: int, analyses: Sequence[Analysis]
) -> list[dict[str, Any]]:
    """The rows of one truth."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    todo = list(analyses)
    for seed in along(range(draws), truth.name, draws, "draws"):
        with tempfile.TemporaryDirectory() as scratch:
            simulation = truth.kind(**asdict(shape), seed=seed, **truth.settings)
            run = simulate(simulation, Path(scratch) / "run")
            controls = run.controls
            for analysis in list(todo):
                try:
                    dataset = analysis(run, *controls)
                except Missing:
                    todo.remove(analysis)
                    continue
                except InputError:
                    raise
                except plugins.AUTHORS as error:  # a third party's analysis
                    raise HookError(
                        f"analysis {analysis.name} failed on {truth.name!r}, seed {seed}: "
                        f"{plugins.reason(error)}"
                    ) from error
                for name, one in salient(dataset).items():
                    parts = (one.value, one.low, one.high, one.p, one.null)
                    numbers = tuple(np.nan if v is None else float(v) for v in parts)
                    found.setdefault((analysis.name, name), []).append(numbers)
    return [
        row
        for (analysis, name), each in found.items()
        for row in _rows(truth, analysis, name, np.array(each).T)
    ]


def _rows(truth: Truth, analysis: str, name: str, numbers: stats.Floats) -> list[dict[str, Any]]:
    """Of the values, bounds, p-values and nulls of an estimate, (5, draws)."""
    value, low, high, p, null = numbers
    full = f"{analysis}.{name.partition(',')[0]}"
    role = "nothing" if full in truth.nothing else "planted" if full in truth.planted else ""
    mean = value[np.isfinite(value)].mean() if np.isfinite(value).any() else np.nan
    events = {
        "p": (p < 0.05, p),
        "interval": ((low > null) | (high < null), low + high + null),
        "coverage": ((low <= mean) & (mean <= high), low + high),
    }
    rows = []
    for kind, (event, known) in events.items():
        counted = np.isfinite(known)
        if counted.any():
            rate, *bounds = _proportion(int(event[counted].sum()), int(counted.sum()))
            rows.append(
                {
                    "truth": truth.name,
                    "analysis": analysis,
                    "estimate": name,
                    "kind": kind,
                    "role": role,
                    "draws": int(counted.sum()),
                    "mean": round(float(mean), 4),
                    "rate": round(rate, 4),
                    "low": round(bounds[0], 4),
                    "high": round(bounds[1], 4),
                }
            )
    return rows


def _proportion(events: int, draws: int) -> tuple[float, float, float]:
    """A rate, and its exact 95% interval (Clopper and Pearson 1934)."""
    import scipy.stats

    interval = scipy.stats.binomtest(events, draws).proportion_ci(method="exact")
    return events / draws, float(interval.low), float(interval.high)


def stored() -> dict[str, Any]:
    """The calibration that came with this version, of the quickstart's shape."""
    return dict(json.loads(STORED.read_text("utf-8")))


def told(table: dict[str, Any], run: Run) -> dict[str, Any]:
    """A table as the report has it: what it is about, columns and rows."""
    shape, own = Shape(**table["shape"]), Shape.of(run)
    words = "{documents} documents and {held_out} held out, {epochs} epochs, {steps} steps"
    same = (
        "the shape of this run"
        if shape == own
        else f"another shape than this run's ({words.format(**asdict(own))}; for its own: "
        f"python -m recovery_probe.calibrate {run.path} --out DIR)"
    )
    rows = [_cells(row) for row in table["rows"]]
    return {
        "about": "Every analysis on processes in which the truth is known, as often as the table "
        f"says, of {words.format(**table['shape'])}: {same}. A test at 5% should call 5% of draws "
        "that have nothing, and an interval hold the mean of all draws in 95%; the bands are 2 to "
        "8 and 92 to 98%. What all documents of a run share, a shock at one time, no interval over "
        "its documents can know.",
        "alt": "False alarms, coverage and power of the analyses on simulated runs.",
        "drawn": True,
        "columns": ["truth", "plants of it", "estimate", "how often", "rate", "draws"],
        "rows": rows,
        "count": len(rows),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["truth"],
        row["role"] or "neither",
        f"{row['analysis']}: {row['estimate']}",
        KINDS[row["kind"]],
        f"{row['rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]",
        str(row["draws"]),
    ]


def in_words(row: dict[str, Any]) -> str:
    """A row in a line."""
    truth, role, estimate, how, rate, draws = _cells(row)
    return f"{truth} ({role}): {estimate}: {how} in {rate} of {draws}"


@plots.styled
def draw(table: dict[str, Any]) -> Figure:
    """False alarms where nothing is planted, coverage there, and how often what is planted is
    found: a line for each estimate, on it a point for each truth, with its interval."""
    rows = [row for row in table["rows"] if row["role"]]
    nothing, planted = ([r for r in rows if r["role"] == role] for role in ("nothing", "planted"))
    panels = {
        "false alarms at 5%": ([r for r in nothing if r["kind"] != "coverage"], (0.02, 0.08)),
        "coverage of 95%": ([r for r in nothing if r["kind"] == "coverage"], (0.92, 0.98)),
        "found where planted": ([r for r in planted if r["kind"] != "coverage"], None),
    }
    labels = list(dict.fromkeys(map(_label, rows)))
    truths = list(dict.fromkeys(row["truth"] for row in rows))
    fig, axes = plots.mosaic([list(panels)], height=1.5 + 0.27 * len(labels), sharey=True)
    for title, (part, band) in panels.items():
        _points(axes[title], part, labels, truths, band)
        axes[title].set(title=title, xlim=(-0.03, 1.03), xticks=(0, 0.5, 1))
    first = axes[next(iter(panels))]
    first.set_yticks(range(len(labels)), labels)
    first.invert_yaxis()
    fig.legend(handles=[_mark(t, truths) for t in truths], loc="outside lower center", ncols=3)
    return fig


def _label(row: dict[str, Any]) -> str:
    return f"{row['analysis']}: {row['estimate']}".replace("_", " ")


def _points(
    axes: Axes,
    rows: list[dict[str, Any]],
    labels: list[str],
    truths: list[str],
    band: tuple[float, float] | None,
) -> None:
    """The rows of one panel, those of a truth all as high above their estimate's line."""
    if band:
        axes.axvspan(*band, color=plots.HELD_OUT, alpha=0.3, linewidth=0)
    for row in rows:
        i = truths.index(row["truth"])
        y = labels.index(_label(row)) + 0.7 * (i / max(1, len(truths) - 1) - 0.5)
        axes.hlines(y, row["low"], row["high"], color=plots.colour(i), linewidth=0.8)
        axes.plot(row["rate"], y, MARKS[i % len(MARKS)], color=plots.colour(i), markersize=3)


MARKS = "os^Dv<>PX*d"


def _mark(truth: str, truths: list[str]) -> Any:
    from matplotlib.lines import Line2D

    i = truths.index(truth)
    return Line2D([], [], color=plots.colour(i), marker=MARKS[i % len(MARKS)], ls="", label=truth)
