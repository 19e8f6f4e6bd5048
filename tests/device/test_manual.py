"""docs/devices.md: its commands exist as they are written, and what it says that stic says, stic says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from stic.compiler.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "devices.md").read_text()
CODE = re.findall(r"^    ((?:.*\\\n)*.*)", PAGE, re.MULTILINE)
COMMANDS = [line.replace("\\\n", " ") for line in CODE if re.match(r'(\w+="[^"]*" )?stic [a-z]', line)]
# First column of the table of troubles, but for what others say.
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE[PAGE.index("| it says |") :], re.MULTILINE)


def _parse(words: list[str]) -> None:
    """As `stic` would before it runs anything. Raises UsageError."""
    with click.Context(cli) as context:
        command = cli.get_command(context, words[0])
        assert command is not None, f"there is no stic {words[0]}"
        command.make_context(words[0], words[1:], parent=context)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)
    _parse(words[words.index("stic") + 1 :])


def test_a_command_that_is_none_is_seen() -> None:
    with pytest.raises(click.UsageError):
        _parse(["deploy", "a.stic", "--tracker", "a:1", "--no-such-option"])
    assert len(COMMANDS) > 8 and len(MESSAGES) > 8


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_sources(message: str) -> None:
    sources = (path for folder in ("compiler", "targets", "runtime") for path in (ROOT / folder).rglob("*.py"))
    found = any(message in path.read_text() for path in sources)
    assert found, f"nothing in stic says {message!r}: correct the table in docs/devices.md"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`?((?:runtime|tests|targets)/[\w/.-]+)`?", PAGE))))
def test_a_file_is_there(path: str) -> None:
    assert (ROOT / path.rstrip(".")).exists()
