"""The README's picture, from a trained run: python docs/picture.py RUN --out docs/recovery.svg

The commit that trained the run is written in the picture and in the file's metadata.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import matplotlib as mpl

import recovery_probe as rp
from recovery_probe.analyze import picture, plots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run, its control beside it")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("recovery.svg"))
    given = parser.parse_args()
    run = rp.open_run(given.run)
    what = run.summary()
    commit = (run.provenance.get("commit") or _head())[:7]
    source = f"{what['model']}; {what['schedule']}; {what['optimizer']}; commit {commit}"
    figure = picture.draw(picture.numbers(run, run.controls))
    figure.suptitle(source, fontsize=6, color=plots.HELD_OUT)
    # Letters as paths, on white: the same on every page, light or dark, with whatever fonts.
    with mpl.rc_context({**plots.STYLE, "svg.fonttype": "path"}):
        about = {"Title": picture.TITLE, "Description": source, "Date": None}
        figure.savefig(given.out, format="svg", facecolor="white", metadata=about)
    print(f"{given.out}: {source}")


def _head() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
