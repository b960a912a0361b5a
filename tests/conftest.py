"""What the tests share: tiny settings, and one tiny trained pair of runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the hub
# Tests run side by side, and start processes and notebooks: several of them with a thread for
# every core each would wait for one another. The models are tiny.
os.environ["OMP_NUM_THREADS"] = "1"

import recovery_probe as rp
from recovery_probe.analyze import plots
from recovery_probe.testing import toy_settings

torch.set_num_threads(1)
ALL = toy_settings().recorders
# No machine loses its power here, and a tiny run waits for its disk longer than it computes.
os.fsync = lambda _: None
# Drawing is a seventh of the tests' time. `test_a_figure_is_three_files` draws them all.
plots.KINDS = ("svg",)
# A script's background jobs ignore Ctrl-C, and so would the processes started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

Open = Callable[..., Any]  # a page, of `visit`


def tiny(**changes: Any) -> rp.Settings:
    """Settings of a toy run that records little when nothing is said: the recorders of the preset
    (`ALL`) take most of its time."""
    return toy_settings(**{"recorders": ["checkpoints"], **changes})


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A trained tiny cyclic run; `pair.controls` holds its shuffled control. With all that
    analyses need. Do not write to it."""
    out: Path = tmp_path_factory.mktemp("pair")
    settings = toy_settings(recorders=[*ALL, "readout", "state_return", "allocation"])
    return rp.fit(settings, out, control="shuffled")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's package chromium is not installed")
    with api.sync_playwright() as player:
        started = player.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a report; fails where it then writes to the console or asks for anything."""
    said: list[str] = []
    asked: list[str] = []
    contexts, pages = [], []

    def opened(path: Path, size: tuple[int, int] = (1100, 900), **options: Any) -> Any:
        pages.append(path)
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function("document.querySelector('#explorer-charts').view")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} <= {p.as_uri() for p in pages}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A place of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be made here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def planted(run: rp.Run, path: Path, losses: np.ndarray) -> rp.Run:
    """A copy of a run with other losses in it."""
    shutil.copytree(run.path, path)
    training(path)["losses"][:] = losses
    return rp.open_run(path)


def cut(run: rp.Run, path: Path, episodes: int) -> rp.Run:
    """A copy of a run as if it had been killed after so many episodes."""
    shutil.copytree(run.path, path)
    training(path)["rows_committed"][...] = episodes + 1
    provenance = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps(provenance | {"status": "running"}))
    return rp.open_run(path)


def twinned(run: rp.Run, path: Path) -> rp.Run:
    """A copy of a run with a twin beside it, whose losses are a thousandth higher."""
    shutil.copytree(run.path, path / "cyclic")
    planted(run, path / "twin", run.losses.values * 1.001)
    file = path / "cyclic" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"twins": ["../twin"]}))
    return rp.open_run(path / "cyclic")


def training(path: Path) -> Any:
    """The arrays of a run directory, to write to."""
    return zarr.open_group(path / "record.zarr" / "training", mode="r+")
