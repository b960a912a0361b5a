"""Who writes a run directory, and whether somebody does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from recovery_probe.errors import InputError
from recovery_probe.record import store

LOCK, HOLDER = "lock", "lock.json"
BEAT, SILENT = 20.0, 120.0  # seconds


class Lock:
    """The lock of a run directory, held until it is released or its process ends.

    `lock` is locked as the system does it (flock), which ends with the process, however that ends.
    `lock.json` says who holds it, and is touched every `BEAT` seconds: for readers on another
    machine, whose file system may not tell.

    Raises `InputError` while another process (or this one) holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # which may be renamed meanwhile
        self._held = FileLock(folder / LOCK)
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            raise busy(folder) from None
        if _elsewhere(folder):
            self._held.release()
            raise busy(folder)
        self._over = threading.Event()

    def begin(self) -> None:
        """Say who writes, and that it goes on."""
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": store.now(),
            "folder": self.folder.stat().st_ino,
        }
        store.write_json(self.folder / HOLDER, about)
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.folder / HOLDER)

    def close(self) -> None:
        """Let go; nothing is left of it."""
        self._over.set()
        (self.folder / HOLDER).unlink(missing_ok=True)
        (self.folder / LOCK).unlink(missing_ok=True)
        self._held.release()


def is_locked(folder: Path) -> bool:
    """Whether somebody writes there; yes, where that cannot be told."""
    if not (folder / LOCK).exists():
        return False
    probe = FileLock(folder / LOCK)
    try:
        probe.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    probe.release()
    return _elsewhere(folder)


def was_left(folder: Path) -> bool:
    """Whether its writer ended without a word."""
    return (folder / LOCK).exists() and not is_locked(folder)


def _elsewhere(folder: Path) -> bool:
    """Whether another machine has written there a moment ago. A copy of a run that is being
    written has its `lock.json` too, of another folder."""
    try:
        about = json.loads((folder / HOLDER).read_text("utf-8"))
        age = time.time() - (folder / HOLDER).stat().st_mtime
        return (
            about["host"] != socket.gethostname()
            and about["folder"] == folder.stat().st_ino
            and age < SILENT
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def holder(folder: Path) -> str:
    """Who writes there, or wrote and was killed, as far as that is said."""
    try:
        about = json.loads((folder / HOLDER).read_text("utf-8"))
        return f"process {about['pid']} on {about['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def busy(folder: Path) -> InputError:
    """The error where somebody writes."""
    return InputError(
        f"{folder}: is being written by {holder(folder)}: wait until it has ended, or choose "
        "another --out"
    )
