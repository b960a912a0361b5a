"""The gallery, from an analysed run: python docs/gallery.py RUN [MORE …] --out docs/gallery

RUN is a run, or another folder, that `recovery_probe.analyze` and `recovery_probe.experiment` left
`analyses/` in. What it lacks is taken from MORE, in this order: `twin_distance` wants a run with
`--control twin`, `toy_model` no run, and `pairwise_recovery` to be asked `--from-checkpoint`. What
none of them has stays as the page has it.
Figures are copied, their paths to a hundredth of a point; the page says which run each is of, its
question, null, blind spot, and what was found.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.record.folder import is_run

GROUPS = {
    "Losses": ("age_curve", "recovery", "loss_curves", "online_loss", "token_recovery"),
    "Gradients and kernels": (
        *("gradient_similarity", "kernel_by_lag", "linearised", "pairwise_recovery"),
    ),
    "Weights and activations": (
        *("weight_residuals", "weight_cyclicity", "step_sizes", "activation_similarity"),
        *("transplant", "allocation"),
    ),
    "State and readout": ("state_return", "readout"),
    "Experiments": ("mechanism", "clock_or_cue", "remove_subspace", "optimizer_memory"),
    "Floor, and a toy": ("twin_distance", "toy_model"),
}
HEAD = """# Gallery

Every analysis and experiment that comes with the package, as it stands in a report: its question,
its figure, what it found, what it would show if there were nothing to see, and what it cannot
tell. Read [which number to believe](../numbers.md) beside it.

The run: {run}. One seed: brackets are the spread over its documents, and decide nothing about
another run.{others}

![{alt}](picture.svg)

Written by `python docs/gallery.py RUN`.
"""
PART = """### {name}

**{question}**

![Figure of {name}: {question}]({name}.svg)

<blockquote><p>{verdict}</p></blockquote>

- *Null.* {null}
- *Blind spot.* {blind_spot}
{more}
"""
BESIDE = """## Beside every report

### Plain least squares

The same analyses put to linear equations of the run's own shape, fitted in turn. What they show
too is no evidence of what only a network can do.

![Mean loss by age of plain least squares](least_squares.svg)

<blockquote><p>{reading}</p></blockquote>

### How often the numbers err

Each analysis on processes in which the truth is known: false alarms where nothing is planted, how
often its interval holds the mean, how often it finds what is planted.

![False alarms, coverage and power of the analyses on simulated runs](calibration.svg)
"""
ALT = "Mean loss of a document by its age, in the run and beside its control"


def found(folder: Path) -> dict[str, Any]:
    """Analysis -> what summary.json says of it."""
    summary = json.loads((folder / "analyses" / "summary.json").read_text("utf-8"))
    return dict(summary["analyses"])


def kept(page: Path) -> dict[str, str]:
    """Analysis -> what the page has of it."""
    text = page.read_text("utf-8") if page.exists() else ""
    parts = re.split(r"^(?=##+ )", text, flags=re.MULTILINE)
    return {p.split()[1]: p.rstrip() + "\n" for p in parts if p.startswith("### ")}


def about(folder: Path) -> str:
    """What was trained, in a line."""
    if not is_run(folder):
        return "no run: a simulation"
    run = rp.open_run(folder)
    facts = run.summary()
    commit = (run.provenance.get("commit") or "")[:7]
    said = [facts[key] for key in ("documents", "model", "schedule", "optimizer")]
    return "; ".join([*map(str, said), *([f"commit {commit}"] if commit else [])])


def light(svg: str) -> str:
    """A figure whose paths and places are given to a hundredth of a point."""

    def rounded(path: re.Match[str]) -> str:
        return re.sub(r"(\.\d\d)\d+", r"\1", path[0])

    return re.sub(r'\b(?:d|x|y)="[^"]*"', rounded, svg)


def part(name: str, told: dict[str, Any], of: str) -> str:
    """What the page has of an analysis. Verdicts may hold words of documents: they are escaped."""
    group = "analyses" if name in plugins.ours("analyses") else "experiments"
    paper = plugins.find(group, name).paper
    more = [f"- *The paper.* {paper}"] * bool(paper) + [f"- *Of another run:* {of}."] * bool(of)
    text = PART.format(
        name=name,
        question=html.escape(told["question"], quote=False),
        verdict=html.escape(" ".join(told["verdict"].split()), quote=False),
        null=html.escape(told["null"], quote=False),
        blind_spot=html.escape(told["blind_spot"], quote=False),
        more="\n".join(more),
    )
    return "\n".join(_wrapped(line) for line in text.rstrip().splitlines()) + "\n"


def _wrapped(line: str) -> str:
    if not line.startswith("- "):
        return line
    return textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="an analysed run, its control beside it")
    parser.add_argument("more", type=Path, nargs="*", help="others, for what it lacks")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gallery"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    folders = {folder: found(folder) for folder in (given.run, *given.more)}
    page, elsewhere, before = [], [], kept(given.out / "index.md")
    for title, names in GROUPS.items():
        page.append(f"## {title}\n")
        for name in names:
            folder = next((f for f, told in folders.items() if name in told), None)
            if folder is None and name not in before:
                raise SystemExit(f"{name}: was done in none of {', '.join(map(str, folders))}")
            if folder is None:
                page.append(before[name])
                elsewhere += [name] * ("*Of another run:*" in before[name])
                continue
            other = folder != given.run
            elsewhere += [name] * other
            page.append(part(name, folders[folder][name], about(folder) if other else ""))
            _copy(folder, name, given.out)
    summary = json.loads((given.run / "analyses" / "summary.json").read_text("utf-8"))
    page.append(BESIDE.format(reading=html.escape(summary["least_squares"]["reading"])))
    for name in ("picture", "least_squares", "calibration"):
        _copy(given.run, name, given.out)
    others = f" Of other runs, as they say: {', '.join(elsewhere)}." if elsewhere else ""
    page.insert(0, HEAD.format(run=about(given.run), others=others, alt=ALT))
    (given.out / "index.md").write_text("\n".join(page), encoding="utf-8")
    print(f"{given.out}: {sum(map(len, folders.values()))} analyses in {len(folders)} folders")


def _copy(folder: Path, name: str, out: Path) -> None:
    figure = (folder / "analyses" / f"{name}.svg").read_text("utf-8")
    (out / f"{name}.svg").write_text(light(figure), encoding="utf-8")


if __name__ == "__main__":
    main()
