"""Many runs as one plan: a base and axes, trained anywhere, compared on one page;
`python -m recovery_probe.sweep`.

    read(name or file)   a sweep as data                  Sweep, Axis, Paper
    sweep(spec, out)     train what is not done, compare  engines: where runs are trained
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recovery_probe.sweep.engines import in_process, processes, ray, slurm
    from recovery_probe.sweep.running import sweep
    from recovery_probe.sweep.spec import Sweep, read

_HOME = {
    "Sweep": "spec",
    "in_process": "engines",
    "processes": "engines",
    "ray": "engines",
    "read": "spec",
    "slurm": "engines",
    "sweep": "running",
}

__all__ = ["Sweep", "in_process", "processes", "ray", "read", "slurm", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
