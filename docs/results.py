"""Copy what sweeps and experiments found into the repository, and say how it came about.

    python docs/results.py runs/sweeps --out docs/results
    python docs/results.py --why runs/why/all
    python docs/results.py --why runs/why/smollm2/cyclic --name why-smollm2

`runs/sweeps/NAME` as `python -m recovery_probe.sweep NAME --out runs/sweeps/NAME` leaves it: its
table, its figures, its verdicts, and where its runs were trained. What the page says of sweeps that
are not there stays. `--why`: what `python -m recovery_probe.experiment mechanism RUNS --out DIR`
left, as a page of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import xarray as xr
from recovery_probe_analyses.mechanism import decisions

from recovery_probe.analyze import estimate
from recovery_probe.experiments.rules import CLAIMS, RULES, together
from recovery_probe.record.folder import is_run
from recovery_probe.record.run import Run, open_run
from recovery_probe.sweep import spec as specs

HEAD = """# What the sweeps found

Each is a named sweep; its command trains it anew, or goes on with it. Points are seeds, lines their
means, bars 95% t intervals over them; the shuffled control is drawn beside. Where the paper has
values they are open diamonds: of other networks, documents and lengths, so that directions can be
compared and heights cannot. What each says of its direction is Page's trend test over seeds.

This page is written by `python docs/results.py runs/sweeps`.
"""

WHY = """# Why: which explanations the evidence supports

```sh
python -m recovery_probe.experiment mechanism {paths}
```

{network}; its shuffled control; {over}. Trained on {trained}.
What would support each explanation, and what would contradict it, was written down before any was
looked at (`recovery_probe/experiments/rules.py`), but for one change: H1 and H2 were once decided
by the same kernel, held late, until a network whose features have to be learned, and then are kept,
did not come out as H1. H1 is since decided by the kernel held from the start; that number had not
been looked at. This page is written by
`python docs/results.py --why {place} --name {name}`."""
PARTS = (
    *("age_curve", "linearised", "kernel_by_lag", "clock_or_cue", "allocation", "transplant"),
    *("remove_subspace", "readout", "state_return", "optimizer_memory"),
)


def sections(page: str) -> dict[str, str]:
    """Name of the sweep -> what the page says of it."""
    parts = [f"## {part.rstrip()}\n" for part in page.split("\n## ")[1:]]
    names = [re.search(r"\[Numbers\]\((.+)/sweep\.csv\)", part) for part in parts]
    return {found[1]: part for found, part in zip(names, parts, strict=True) if found}


def section(place: Path, out: Path) -> str:
    """Of one sweep, its files copied."""
    spec = specs.read(place.name, {})
    found = xr.open_zarr(place / "sweep.zarr", consolidated=None)
    folder = out / place.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(place / "sweep.csv", folder / "sweep.csv")
    lines = [f"## {spec.about.partition(';')[0]}", ""]
    command = f"python -m recovery_probe.sweep {place.name} --out runs/sweeps/{place.name}"
    lines += ["```sh", command, "```", "", *trained(place), ""]
    for axis in spec.axes:
        shutil.copy(place / "figures" / f"{axis.name}.svg", folder / f"{axis.name}.svg")
        lines += [f"![{place.name}, {axis.name}]({place.name}/{axis.name}.svg)", ""]
    lines += [f"- {text}" for text in found.attrs["verdicts"]]
    return "\n".join([*lines, "", f"[Numbers]({place.name}/sweep.csv)", ""])


def explanations(place: Path, out: Path) -> None:
    """The page of explanations, with the figure and the verdict of each of its parts."""
    out.mkdir(parents=True, exist_ok=True)
    found = xr.open_zarr(place / "analyses" / "mechanism.zarr", consolidated=None).load()
    summary = json.loads((place / "analyses" / "summary.json").read_text("utf-8"))
    runs, words = [open_run(path) for path in summary["runs"]], decisions(found)
    parts = [name for name in ("mechanism", *PARTS) if name in summary["analyses"]]
    for name in parts:
        shutil.copy(place / "analyses" / f"{name}.svg", out / f"{name}.svg")
    rows = [["", "measure", "measured by", "value", "low", "high", "placebo or control", "says"]]
    for i, (rule, word) in enumerate(zip(RULES, words, strict=True)):
        one = estimate.get(found, "measured", prediction=i)
        numbers = (one.value, one.low, one.high, float(found.beside[i]))
        shown = ["" if np.isnan(number) else estimate.two(number) for number in numbers]
        rows.append([rule.hypothesis, rule.measure, rule.part, *shown, word])
    with (out / "mechanism.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    rows.insert(1, ["---"] * len(rows[0]))
    claims, lacking = [], [f"Not measured: {why}." for why in found.attrs.get("not_measured", [])]
    if left_out := [name for name in PARTS if name not in parts]:
        lacking.append(f"Not done: {', '.join(left_out)}.")
    for name, claim in CLAIMS.items():
        own = [word for rule, word in zip(RULES, words, strict=True) if rule.hypothesis == name]
        claims.append(f"- {name}, {claim}: **{together(own)}**")
    lines = [
        WHY.format(
            paths=" ".join(str(run.path if len(runs) > 1 else run.path.parent) for run in runs)
            + (f" --out {place}" if len(runs) > 1 else ""),
            place=place,
            name=out.name,
            network=_network(runs[0]),
            over=f"{len(runs)} seeds: intervals are 95% t intervals over them"
            if len(runs) > 1
            else "one seed: intervals are over its documents, and another seed may differ",
            trained="; ".join(sorted({_machine(run) for run in runs})),
        ),
        "![Each prediction, what was measured, and what it says](mechanism.svg)",
        "\n".join(claims),
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "[Numbers](mechanism.csv)",
        *(["\n".join(f"- {each}" for each in lacking)] if lacking else []),
    ]
    for name in parts[1:]:
        about = summary["analyses"][name]
        lines += [f"## {about['question']}", f"![{name}]({name}.svg)", summary[name]["verdict"]]
        lines += [f"*Null:* {about['null']}", f"*Blind spot:* {about['blind_spot']}"]
    (out / "README.md").write_text("\n\n".join(lines) + "\n", "utf-8")


def trained(place: Path) -> list[str]:
    """How many runs, how they ended, where and with what they were trained."""
    runs = [open_run(p.parent) for p in sorted(place.rglob("provenance.json")) if is_run(p.parent)]
    ended = Counter(run.status for run in runs)
    where = Counter(map(_machine, runs))
    minutes = sum(run.provenance.get("seconds", 0) for run in runs) / 60
    return [
        f"{len(runs)} runs ({', '.join(f'{n} {status}' for status, n in ended.items())}), "
        f"{minutes:.0f} minutes of training in all: "
        f"{'; '.join(f'{n} on {name}' for name, n in where.items())}."
    ]


def _network(run: Run) -> str:
    """What was trained, on what, for how long."""
    config = run.config
    source, count = Path(config.model.source).name, run.provenance["parameters"]
    return (
        f"A {'random' if source == 'random' else f'pretrained ({source})'} network of "
        f"{count / 1e6:.3g}M parameters; {config.documents.count} documents "
        f"(`{config.documents.source}`) of {config.documents.tokens} tokens, {config.steps} "
        f"gradient steps on each, {config.epochs} epochs, {config.optimizer.name}, learning rate "
        f"{config.optimizer.lr:g}"
    )


def _machine(run: Run) -> str:
    """On what, with what a run was trained; where it ended, if it was resumed elsewhere."""
    facts = run.provenance
    found = {"device": facts["device"], "commit": facts.get("commit"), **facts["versions"]}
    for again in facts.get("resumed", []):
        changes = {name: both[1] for name, both in again["changed"].items()}
        found |= {"device": again["device"]} | changes
    commit = f", commit {found['commit'][:7]}" if found["commit"] else ""
    return f"{found['device']}, Python {found['python']}, torch {found['torch']}{commit}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweeps", type=Path, nargs="?")
    parser.add_argument("--why", type=Path)
    parser.add_argument("--name", default="why", help="of the page of explanations")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    chosen = parser.parse_args()
    if chosen.why:
        explanations(chosen.why, chosen.out / chosen.name)
    page = chosen.out / "README.md"
    texts = sections(page.read_text("utf-8")) if page.exists() else {}
    for place in (p.parent for p in chosen.sweeps.glob("*/sweep.zarr")) if chosen.sweeps else ():
        texts[place.name] = section(place, chosen.out)
    page.write_text("\n".join([HEAD, *(texts[name] for name in sorted(texts))]), "utf-8")
