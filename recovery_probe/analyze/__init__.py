"""Put analyses to runs and write what they find; `python -m recovery_probe.analyze`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recovery_probe.analyze.perform import analyze

__all__ = ["analyze"]


def __getattr__(name: str) -> Any:
    """`analyze`, when it is first asked for: a plug-in of ours imports this package for less."""
    if name != "analyze":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recovery_probe.analyze.perform import analyze

    return analyze
