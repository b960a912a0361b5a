"""`python -m recovery_probe.simulate`: a door alone. What it does is `recovery_probe.simulate`, the
function, from `simulations/writing.py`."""

from recovery_probe.__main__ import run

if __name__ == "__main__":
    run("simulate")
