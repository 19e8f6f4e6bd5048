"""The errors a user can meet. Each message says what, where, and what to try.

The command line prints the message on one line and exits with `exit_code`; any other exception is a defect.
"""


class SticError(Exception):
    """Anything that stic refuses with a sentence."""

    exit_code = 1


class InputError(SticError):
    """The user's input cannot be used: a model, a text, a data file, an option's value."""


class UnsupportedModelError(InputError):
    """A graph that the frontend cannot take; names the node, its op, and what was expected there."""


class PackageError(SticError):
    """A package is missing, truncated, corrupt, or of a newer format; may carry the name of the check that failed."""

    def __init__(self, message: str, check: str = "") -> None:
        super().__init__(message)
        self.check = check  # of stic.runtime.checks


class InfeasibleError(SticError):
    """No plan meets the budget; the message names the least latency and the least memory that would."""


class TargetError(SticError):
    """A target is unknown, or this machine cannot do what the target needs."""


class ToolchainError(SticError):
    """No compiler or linker for the target was found, or it failed."""


class EngineError(SticError):
    """The engine refused a call or failed; carries the engine's status code."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
