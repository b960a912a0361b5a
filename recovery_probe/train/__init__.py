"""Fine-tuning in cycles, written down: `fit`, and `python -m recovery_probe.train`."""

from recovery_probe.train.plan import Point as Point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from recovery_probe.train.fitting import fit as fit


def __getattr__(name: str) -> object:
    """`fit`, when it is asked for: it needs torch, which takes seconds."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recovery_probe.train.fitting import fit

    return fit
