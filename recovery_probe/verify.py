"""`python -m recovery_probe.verify`: a door alone. What it does stands in `record/verify.py` and
`train/mend.py`."""

from recovery_probe.__main__ import run

if __name__ == "__main__":
    run("verify")
