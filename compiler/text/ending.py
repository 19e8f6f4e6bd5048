"""The token that ends an answer, as a chat template shows it."""

from __future__ import annotations

from collections.abc import Iterable

from stic.compiler.decoder.model import Text
from stic.compiler.text.template import ChatTemplate
from stic.runtime.errors import InputError


def turn_end(text: Text, special: Iterable[str]) -> str | None:
    """Return which of the special tokens the template puts behind an answer; None if it does not say.

    Files that name one end of text only, such as that of documents, make models talk on. A template that is damaged
    says nothing here: whoever uses it is told.
    """
    if text.template is None:
        return None
    try:
        behind = ChatTemplate(text, "the model").end_of_turn().lstrip()
    except InputError:
        return None
    return max((token for token in special if token and behind.startswith(token)), key=len, default=None)
