"""The errors a user is meant to read: one line that repeats the input and says the mend."""


class InputError(ValueError):
    """Something the user gave cannot be used. Raised before any training; exit code 2."""


class Missing(InputError):
    """A run lacks what an analysis needs; the message says how to get it."""


class NotRecorded(Missing, AttributeError):
    """A recorder was off. An `AttributeError` too, so that `hasattr(run, name)` answers."""


class Damaged(InputError):
    """A run is not as it was written: something is gone, cut off or changed."""


class Diverged(RuntimeError):
    """Training left the region where its numbers mean anything. The record so far is kept."""


class HookError(RuntimeError):
    """A user's hook failed, or would change training; or a user's analysis did. The record so far
    is kept."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by its user; the message says what is kept, and how to go on."""

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal  # the first that asked
