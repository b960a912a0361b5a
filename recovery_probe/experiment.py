"""`python -m recovery_probe.experiment`: a door alone. What it does stands in `experiments/`."""

from recovery_probe.__main__ import run

if __name__ == "__main__":
    run("experiment")
