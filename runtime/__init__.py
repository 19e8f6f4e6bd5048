"""The runtime: reads packages, runs them, and needs numpy only.

>>> from stic.runtime import Session
>>> with Session("model.stic") as session:
...     output = session.run([101, 7592, 102])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stic.runtime.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    """Import the session when it is asked for: whoever wants another module only does not pay for it."""
    if name == "Session":
        from stic.runtime.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
