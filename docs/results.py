"""Copy what sweeps found into the repository, and say how it came about.

    python docs/results.py runs/sweeps --out docs/results

`runs/sweeps/NAME` as `python -m recovery_probe.sweep NAME --out runs/sweeps/NAME` leaves it: its
table, its figures, its verdicts, and where its runs were trained. What the page says of sweeps that
are not there stays.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections import Counter
from pathlib import Path

import xarray as xr

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
    parser.add_argument("sweeps", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    chosen = parser.parse_args()
    page = chosen.out / "README.md"
    texts = sections(page.read_text("utf-8")) if page.exists() else {}
    for place in (p.parent for p in chosen.sweeps.glob("*/sweep.zarr")):
        texts[place.name] = section(place, chosen.out)
    page.write_text("\n".join([HEAD, *(texts[name] for name in sorted(texts))]), "utf-8")
