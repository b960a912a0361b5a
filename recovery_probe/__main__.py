"""`python -m recovery_probe`, and the console script `recovery-probe`."""

from recovery_probe.cli import main

if __name__ == "__main__":
    main()
