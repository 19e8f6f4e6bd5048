"""How a byte-level GGUF tokenizer cuts text before it merges: what `tokenizer.ggml.pre` means.

The names are llama.cpp's, given by its converter for the tokenizer that it recognised; the patterns are those of the
models' own tokenizer.json. A name is all that a file holds, so one that is not known here is refused: other cuts give
other tokens, and fluent but worse text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str, prefix: str = rf"(?i:{_CONTRACTIONS})|", ends: str = r"[\r\n]*") -> str:
    """cl100k's pattern and its kin, which differ in how many digits stand together."""
    return rf"{prefix}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+{ends}|{_TAIL}"


def _cased(digits: str, suffix: str) -> str:
    """o200k's pattern and its kin: a word ends where capitals begin."""
    first = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{suffix}"
    second = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{suffix}"
    return rf"{first}|{second}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"


@dataclass(frozen=True)
class Pre:
    """A way to cut text."""

    pattern: str | None = None  # what stands together; None: as GPT-2 does
    digits: bool = False  # every digit stands alone, before anything else
    composed: bool = False  # text is brought into normal form C first
    whole: bool = False  # a word that is a token needs no merges
    bos: bool = False  # prompts start with bos, where the file does not say

    def steps(self) -> list[dict[str, Any]]:
        """The pre-tokenizers of a tokenizer.json, in order."""
        found: list[dict[str, Any]] = []
        if self.digits:
            found.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            found.append({"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False})
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        return [*found, byte_level | {"use_regex": self.pattern is None}]


_GPT2, _DIGITS = Pre(), Pre(digits=True)
_LLAMA3 = Pre(_words(r"\p{N}{1,3}"), whole=True, bos=True)
_CL100K = Pre(_words(r"\p{N}{1,3}"))
_QWEN2 = Pre(_words(r"\p{N}"), composed=True)
PRES: dict[str, Pre] = {
    "gpt-2": _GPT2, "phi-2": _GPT2, "mpt": _GPT2, "mellum": _GPT2, "olmo": Pre(composed=True),
    "smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS, "codeshell": _DIGITS,
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "falcon3": _LLAMA3, "pixtral": _LLAMA3,
    "dbrx": _CL100K, "smaug-bpe": _CL100K,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "megrez": _QWEN2, "stablelm2": Pre(_words(r"\p{N}")),
    "tekken": Pre(_cased(r"\p{N}", ""), whole=True, bos=True),
    "gpt-4o": Pre(_cased(r"\p{N}{1,3}", rf"(?i:{_CONTRACTIONS})?")),
}  # fmt: skip
