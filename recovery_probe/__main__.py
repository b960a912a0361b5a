"""`python -m recovery_probe`, the console script `recovery-probe`, and the modules' own doors."""

from __future__ import annotations

import os
import signal
import sys


def run(*words: str) -> None:
    """The command line, which begins with `words`, and exit. An interrupt is one line, also while
    the libraries load."""
    code = 0
    try:
        from recovery_probe.cli import main

        main([*words, *sys.argv[1:]])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("error: interrupted", file=sys.stderr)
        code = 130
    except SystemExit as stop:
        if stop.code not in (130, 143):
            raise
        code = stop.code
    if code:
        # Python remembers an interrupt that passed through a library's C code, and would end with
        # the signal, whatever was caught since.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(0)


if __name__ == "__main__":
    run()
