"""`python -m recovery_probe.sweep`"""

from recovery_probe.__main__ import run

if __name__ == "__main__":
    run("sweep")
