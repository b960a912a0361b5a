"""What is given to others: wheel and source, built, checked, and installed where no source lies."""

from __future__ import annotations

import re
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"recovery_probe": ROOT, "recovery_probe_analyses": ROOT / "analyses"}
JUNK = re.compile(r"__pycache__|\.pyc$|\.ipynb|(^|/)(runs|site|dist|\.git|\.[a-z_]+_cache)(/|$)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source; the wheel is built from the source."""
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


def python(*words: str, cwd: Path, executable: str | Path = sys.executable) -> str:
    """What a command says, in an environment without any path of ours."""
    done = subprocess.run(
        [str(executable), *words],
        cwd=cwd,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(cwd),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_index_would_take_them(built: tuple[Path, Path], tmp_path: Path) -> None:
    said = python("-m", "twine", "check", "--strict", *map(str, built), cwd=tmp_path)
    assert said.count("PASSED") == 2


def test_the_wheel_has_all_of_the_packages_and_nothing_else(built: tuple[Path, Path]) -> None:
    inside = {n for n in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in n}
    assert inside == {
        file.relative_to(place).as_posix()
        for package, place in PACKAGES.items()
        for file in (place / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    for needed in (
        *("presets/quickstart.toml", "sweeps/depth-laptop.toml", "analyze/report.html.jinja"),
        *("analyze/explorer.js", "analyze/calibration.json", "py.typed"),
    ):
        assert f"recovery_probe/{needed}" in inside
    assert "recovery_probe_analyses/py.typed" in inside


def test_the_source_holds_no_junk(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as source:
        names = [name.partition("/")[2] for name in source.getnames()]
    assert not [name for name in names if JUNK.search(name)]
    assert {name.partition("/")[0] for name in names} == {
        *(
            "recovery_probe",
            "analyses",
            "tests",
            "docs",
            "pyproject.toml",
            "PKG-INFO",
            ".gitignore",
        ),
        *("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"),
        *("constraints.txt", "mkdocs.yml"),
    }


def test_the_wheel_works_where_no_source_lies(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In an environment of its own, that has our libraries and not us."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    own = environment / "bin" / "python"
    words = ("--disable-pip-version-check", "--python", str(own), "install", "--no-deps", "-q")
    python("-m", "pip", *words, str(built[0]), cwd=tmp_path)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    where = (
        "import recovery_probe as r, recovery_probe_analyses as a; print(r.__file__, a.__file__)"
    )
    assert python("-c", where, cwd=tmp_path, executable=own).count(str(packages)) == 2

    def run(command: str) -> str:
        return python("-m", *command.split(), cwd=tmp_path, executable=own)

    assert "quickstart" in run("recovery_probe.train")
    assert "depth-laptop" in run("recovery_probe.sweep")
    run("recovery_probe.simulate age_only --out aged --documents 8 --epochs 3 --planted 0.5")
    assert "age_curve" in run("recovery_probe.analyze aged --analysis age_curve recovery")
    page = next(tmp_path.glob("aged/**/report.html")).read_text("utf-8")
    assert "vega" in page
    help_ = subprocess.run(
        [own.with_name("recovery-probe"), "--help"], capture_output=True, text=True
    )
    assert help_.stdout.startswith("usage: recovery-probe {train,")


def test_one_version_and_one_ruff() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    ruff = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert ruff
    hooks = re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert hooks == [ruff[1]] * 2
