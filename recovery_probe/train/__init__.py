"""Fine-tuning in cycles, written down: `fit`, and `python -m recovery_probe.train`, which comes
through here: an interrupt is one line once its door is open, so that nothing is imported before."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from recovery_probe.train.fitting import fit as fit


def __getattr__(name: str) -> object:
    """`fit`, when it is asked for: it needs torch, which takes seconds."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recovery_probe.train.fitting import fit

    return fit
