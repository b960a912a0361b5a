"""How a run lies on the disk: Zarr with checksums, text put in place when whole."""

from __future__ import annotations

import datetime
import errno
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from recovery_probe.errors import Damaged, InputError

COMPRESSORS = (ZstdCodec(checksum=True),)  # a flipped bit is an error, not a number
# Every chunk that was written lies on the disk, so that a lost one is seen to be lost.
KEEP_EMPTY: Any = {"write_empty_chunks": True}


FULL = (errno.ENOSPC, errno.EDQUOT)  # of an `OSError`: the disk is


def write_zarr(dataset: xr.Dataset, path: Path, group: str | None = None) -> None:
    """A new Zarr store, or a new group in one, which is consolidated when all are there. Strings
    get variable length, which Zarr 3 specifies; fixed length it does not."""
    encoding: dict[Any, Any] = {n: {"compressors": COMPRESSORS} for n in dataset.variables}
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "UO":
            encoding[name]["dtype"] = np.dtypes.StringDType()
    dataset.drop_encoding().to_zarr(
        path,
        group=group,
        mode="w-",
        zarr_format=3,
        consolidated=False,
        encoding=encoding,
        write_empty_chunks=True,
    )
    if group is None:
        consolidate(path)


def consolidate(path: Path) -> None:
    """Copy the metadata of all arrays of a store to its root, where readers look first."""
    with warnings.catch_warnings():
        # Zarr says that not every reader knows consolidated metadata. xarray does, asks for it
        # first, and warns when it is missing; readers that do not know it lose nothing.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)


def write_text(path: Path, text: str) -> None:
    """A file, put in place when whole."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: Path, content: Any) -> None:
    """The same, as JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def flush(path: Path) -> None:
    """Have a file, or what a folder lists, on the disk: neither a crash nor a power cut takes it
    back."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def flush_since(folder: Path, since: float) -> None:
    """The same for every file in a folder that was changed after a time, in seconds since 1970;
    some seconds before it too, since the clocks of a disk and of a machine differ."""
    for file in folder.rglob("*"):
        if file.stat().st_mtime > since - 10:
            flush(file)


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Name what was being read when it turns out to be damaged: every library has errors of its
    own for that."""
    try:
        with warnings.catch_warnings():
            # Of an array without its metadata, Zarr says no more than this.
            warnings.filterwarnings("error", message="Object at .* is not recognized")
            yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Damaged(
            f"{what}: damaged or missing ({type(error).__name__}: {reason}); bring back a copy, or "
            "train again"
        ) from error
