"""`python -m recovery_probe.train`"""

from recovery_probe.__main__ import run

if __name__ == "__main__":
    run("train")
