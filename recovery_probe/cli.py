"""The command line: `recovery-probe train …`, `analyze …` and the other `commands`, and the same as
modules.

A mistake of the user's is one line on standard error and exit code 2, never a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from recovery_probe.errors import Diverged, HookError, InputError
from recovery_probe.saying import as_before
from recovery_probe.spelling import nearest

COMMANDS = ("train", "analyze", "sweep", "simulate", "calibrate", "replay", "experiment", "verify")
PATIENCE = 5  # seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Run one sub-command and exit."""
    words = list(sys.argv[1:] if argv is None else argv)
    with as_before(), _stoppable() as stopped:
        try:
            if words[:1] in ([], ["-h"], ["--help"]):
                names = ",".join(COMMANDS)
                print(f"usage: recovery-probe {{{names}}} …   (--help after each tells more)")
            elif words[0] in COMMANDS:
                importlib.import_module(f"recovery_probe.commands.{words[0]}").run(words[1:])
            else:
                raise InputError(
                    f"no command {words[0]!r}{nearest(words[0], COMMANDS)}; commands: "
                    + ", ".join(COMMANDS)
                )
        except InputError as error:
            _stop(error, 2)
        except BrokenPipeError:  # whoever read our output has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            _stop(f"{error.filename or 'input and output'}: {error.strerror or error}", 2)
        except (Diverged, HookError) as error:
            _stop(error, 1)
        except KeyboardInterrupt as told:
            first = [getattr(told, "signal", 0), *stopped]
            _stop(str(told) or "interrupted", 143 if signal.SIGTERM in first else 130)


@contextlib.contextmanager
def _stoppable() -> Iterator[dict[int, float]]:
    """SIGTERM, with which schedulers and containers end a job, ends it as an interrupt does. More
    of either are ignored while the run says how it ended, and end the process after `PATIENCE`.
    Yields what has come -> when."""
    came: dict[int, float] = {}

    def stop(number: int, _: object) -> None:
        if not came:
            came[number] = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - next(iter(came.values())) > PATIENCE:
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    stop.came = came  # type: ignore[attr-defined]
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        if not came:  # otherwise the process is about to end
            for number, handler in before.items():
                signal.signal(number, handler)


def _stop(message: object, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
