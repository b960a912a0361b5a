"""`python -m recovery_probe.replay`: a door alone. What it does stands in `train/replay.py`."""

from recovery_probe.__main__ import run

if __name__ == "__main__":
    run("replay")
