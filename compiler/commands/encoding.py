"""Output for terminals and files that cannot hold every character: what is drawn stays readable in ASCII."""

from __future__ import annotations

import codecs
import io
import sys

# One character each, so that columns stay below each other.
_DRAWN = dict(zip("▁▂▃▄▅▆▇█", ".:-=+*%#", strict=True)) | {"·": ".", "│": "|", "→": ">", "…": "~", "µ": "u", "μ": "u"}
_HANDLER = "stic-readable"


def readable_output() -> None:
    """Let stdout and stderr write what their encoding lacks in other characters, where they would raise an error.

    Drawings turn into ASCII; bytes of file names that are no text, and other letters, into escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not so where a program that calls main() collects the output
            stream.reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError), "this handler is for output"
    part = error.object[error.start : error.end]
    return "".join(_DRAWN.get(char) or char.encode("ascii", "backslashreplace").decode() for char in part), error.end


codecs.register_error(_HANDLER, _replaced)
