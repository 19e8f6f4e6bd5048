"""The bytes that every token stands for, as a tokenizer.json's decoder says.

Two kinds of decoder are known, which are those of language models. ByteLevel writes bytes in GPT-2's letters
(https://github.com/openai/gpt-2, `bytes_to_unicode`). SentencePiece's, a sequence of Replace, ByteFallback, Fuse and
Strip or one Metaspace, has "▁" for a space and <0xHH> for a byte that no token has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from stic.runtime.errors import InputError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter of every byte: itself where it can be seen, else one of 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_LETTERS = _byte_letters()


class Pieces:
    """Tokens as bytes; `strips` says that text loses one space at its beginning."""

    def __init__(self, tokenizer: Tokenizer, content: Mapping[str, Any], where: str) -> None:
        """`content` is the tokenizer.json. Raises InputError for a decoder that is not known."""
        self._tokenizer = tokenizer
        self._added = {token["id"]: token for token in content.get("added_tokens") or ()}
        steps = _steps(content.get("decoder"))
        kinds = [step.get("type") for step in steps]
        unknown = [kind for kind in kinds if kind not in _KNOWN]
        if unknown or not kinds or (kinds[0] == "ByteLevel" and len(kinds) > 1):
            raise InputError(
                f"{where}: its tokenizer decodes by {', '.join(map(str, kinds)) or 'nothing'}; ByteLevel, or"
                f" {', '.join(_KNOWN[1:])} are supported"
            )
        self._byte_level = kinds[0] == "ByteLevel"
        self._fallback = "ByteFallback" in kinds
        self.strips = any(_strips(step) for step in steps)

    def special(self, token: int) -> bool:
        """Whether a token is no text: it begins, ends or divides."""
        added = self._added.get(token)
        return added is not None and bool(added.get("special"))

    def bytes(self, token: int) -> bytes:
        """What a token adds to a text; nothing for an id that the tokenizer does not have."""
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            if all(letter in _LETTERS for letter in text):
                return bytes(_LETTERS[letter] for letter in text)
            return text.encode("utf-8")
        found = _BYTE.fullmatch(text) if self._fallback else None
        return bytes([int(found[1], 16)]) if found else text.replace(_SPACE, " ").encode("utf-8")


_KNOWN = ("ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace")


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    return list(decoder.get("decoders") or ()) if decoder.get("type") == "Sequence" else [decoder]


def _strips(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
    return bool(step["type"] == "Strip" and step.get("start", 0) > 0)
