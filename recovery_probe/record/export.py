"""A run in the formats that others read: pandas, netCDF, Parquet."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from recovery_probe.errors import InputError, Missing
from recovery_probe.record import store
from recovery_probe.record.folder import as_path
from recovery_probe.spelling import nearest

if TYPE_CHECKING:
    import pandas as pd

OWN = ("losses", "train_loss", "schedule")


class Exported:
    """What `Run` can be written as: `losses`, `train_loss`, `schedule`, or what an analysis found,
    by its name."""

    path: Path

    def to_pandas(self, what: str = "losses") -> pd.DataFrame:
        """A row for each value, and a column for each dimension and coordinate; of an analysis, of
        its numbers: `variable`, the dimensions that any of them has, `value`.

        Raises `Missing` for an analysis that was not done.
        """
        import pandas as pd

        found = self._exported(what)
        if what in OWN:
            return found[what].to_dataframe().reset_index()
        frames = []
        for name, values in found.data_vars.items():
            if values.dtype.kind in "biuf":
                table = values.astype(float).reset_coords(drop=True).expand_dims(variable=[name])
                frames.append(table.to_series().rename("value").reset_index())
        whole = pd.concat(frames, ignore_index=True)
        return whole[[*(c for c in whole.columns if c != "value"), "value"]]

    def to_netcdf(self, path: str | os.PathLike[str], what: str = "losses") -> Path:
        """Write the arrays with their names, units and descriptions; attributes that netCDF cannot
        hold, as JSON. Returns where. Raises as `to_pandas` does, and `InputError` without the
        package netCDF4."""
        _need("netCDF4")
        whole = self._exported(what).drop_encoding()
        parts: list[Any] = [whole, *whole.variables.values()]
        for part in parts:
            part.attrs = {name: _plain(value) for name, value in part.attrs.items()}
        return _whole(path, lambda aside: whole.to_netcdf(aside, engine="netcdf4"))

    def to_parquet(self, path: str | os.PathLike[str], what: str = "losses") -> Path:
        """Write the table that `to_pandas` makes. Returns where. Raises as that does, and
        `InputError` without the package pyarrow."""
        _need("pyarrow")
        table = self.to_pandas(what)
        return _whole(path, lambda aside: table.to_parquet(aside, engine="pyarrow"))

    def _exported(self, what: str) -> xr.Dataset:
        if what in OWN:
            array: xr.DataArray = getattr(self, what)
            return array.rename(what).to_dataset()
        folder = self.path / "analyses"
        if not (folder / f"{what}.zarr").exists():
            there = [*OWN, *sorted(found.stem for found in folder.glob("*.zarr"))]
            raise Missing(
                f"{self.path}: no {what!r}{nearest(what, there)}; there are {', '.join(there)}; "
                "python -m recovery_probe.analyze does others"
            )
        with store.reading(folder / f"{what}.zarr"):
            return xr.open_zarr(folder / f"{what}.zarr", consolidated=None).load()


def _plain(value: Any) -> Any:
    """An attribute as netCDF has them: text, a number, or numbers."""
    if isinstance(value, (str, int, float, np.number)) and not isinstance(value, bool):
        return value
    return json.dumps(value)


def _need(package: str) -> None:
    if not importlib.util.find_spec(package):
        raise InputError(f'{package} is not installed: pip install -c constraints.txt ".[export]"')


def _whole(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """A file that is put in place when whole."""
    place = as_path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(place.name + ".partial")
    write(aside)
    os.replace(aside, place)
    return place
