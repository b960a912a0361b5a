"""`python -m recovery_probe.analyze`."""

from recovery_probe.__main__ import run

run("analyze")
