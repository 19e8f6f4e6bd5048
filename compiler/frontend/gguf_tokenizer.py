"""A GGUF file's tokenizer as a tokenizer.json, and the tokens that begin and end text.

Two kinds are taken. "gpt2" is byte-level BPE: tokens in GPT-2's letters for bytes, and merges in their order. "llama"
is SentencePiece BPE: tokens with scores, merged by the best score of what they become, and bytes for what no token
has; its merges are those pairs of tokens that are a token together, by score, as transformers derives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stic.compiler.frontend.gguf_file import GgufFile
from stic.compiler.frontend.gguf_metadata import Metadata
from stic.compiler.frontend.gguf_pre import PRES, Pre
from stic.runtime.errors import UnsupportedModelError

_TOKENS, _KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 2, 3, 4, 5, 6  # of token_type; 1: ordinary
_SPACE = "▁"  # SentencePiece's space
_LONGEST = 256  # letters of a token that merges make: above every model's, and it bounds the work on a hostile one
# Tokens of Phi-3 that do not swallow the spaces behind them, as its others do (tokenizer.json of Phi-3: "rstrip").
_PHI3_PLAIN = frozenset(("<unk>", "<s>", "<|endoftext|>"))


@dataclass(frozen=True, eq=False)
class GgufTokenizer:
    """What a file says of text."""

    json: bytes | None  # a tokenizer.json; None: the file has no tokens
    tokens: Sequence[str]
    special: Mapping[str, int]  # tokens that are no text, by name
    add_bos: bool


def read_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Make a tokenizer.json of a file's metadata.

    Raises UnsupportedModelError for a kind of tokenizer or of cutting that is not known, InputError for damage.
    """
    metadata = Metadata(file)
    model = metadata.text("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return GgufTokenizer(None, (), {}, False)
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{file.path}: its tokenizer is of kind '{model}'; gpt2 (byte-level BPE) and llama (SentencePiece BPE) are"
            " supported"
        )
    tokens = _named(metadata)
    if model == "gpt2":
        pre = _pre(metadata)
        content, default_bos = _byte_level(metadata, tokens, pre), pre.bos
    else:
        content, default_bos = _sentence_piece(metadata, tokens), True
    return GgufTokenizer(
        json.dumps(content, ensure_ascii=False).encode("utf-8"),
        tokens,
        {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]},
        metadata.flag("tokenizer.ggml.add_bos_token", default_bos),
    )


def _named(metadata: Metadata) -> list[str]:
    """The tokens by id, each once; empty ones get a name, as llama.cpp does."""
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(metadata.texts(_TOKENS))]
    ids = _ids(tokens)  # of a token that is there twice, the last
    twice = next((token for number, token in enumerate(tokens) if ids[token] != number), None)
    if twice is not None:
        raise metadata.refuse(_TOKENS, f"'{twice[:40]}' is in it twice, so the tokenizer is damaged")
    return tokens


def _pre(metadata: Metadata) -> Pre:
    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in PRES:
        raise UnsupportedModelError(
            f"{metadata.path}: its tokenizer cuts text as '{name}' (tokenizer.ggml.pre), which is not known; known are"
            f" {', '.join(PRES)}: convert the model again, with a converter that names how"
        )
    return PRES[name]


def _byte_level(metadata: Metadata, tokens: Sequence[str], pre: Pre) -> dict[str, Any]:
    merges = [merge.split(" ") for merge in metadata.texts("tokenizer.ggml.merges")]
    if any(len(pair) != 2 for pair in merges):
        raise metadata.refuse("tokenizer.ggml.merges", "a merge is two tokens with a space between")
    model = {"type": "BPE", "ignore_merges": pre.whole, "vocab": _ids(tokens), "merges": merges}
    return {
        "version": "1.0",
        "added_tokens": _added(metadata, tokens),
        "normalizer": {"type": "NFC"} if pre.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.steps()},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }


def _sentence_piece(metadata: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    spaced = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    if metadata.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        raise metadata.refuse("tokenizer.ggml.remove_extra_whitespaces", "expected false: spaces are kept as they are")
    unknown = metadata.token("tokenizer.ggml.unknown_token_id", len(tokens))
    model = {
        "type": "BPE",
        "unk_token": None if unknown is None else tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": _ids(tokens),
        "merges": _merges(metadata, tokens),
    }
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if spaced else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaced else []
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    return {
        "version": "1.0",
        "added_tokens": _added(metadata, tokens),
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges(metadata: Metadata, tokens: Sequence[str]) -> list[list[str]]:
    """Pairs of tokens that are a token together, best score first; equal scores by the pair's lengths."""
    scores = metadata.numbers("tokenizer.ggml.scores", len(tokens)).astype(np.float64)
    if not np.isfinite(scores).all():
        raise metadata.refuse("tokenizer.ggml.scores", "a score is NaN or infinite, so the tokenizer is damaged")
    kinds = _kinds(metadata, len(tokens))
    ids = _ids(tokens)
    found: list[tuple[float, int, int, str]] = []
    for number, token in enumerate(tokens):
        if kinds[number] in (_UNKNOWN, _CONTROL, _UNUSED, _BYTE) or len(token) > _LONGEST:
            continue
        pairs = [at for at in range(1, len(token)) if token[:at] in ids and token[at:] in ids]
        pairs.sort(key=lambda at: (ids[token[:at]], ids[token[at:]]))
        found += [(float(scores[number]), at, len(token) - at, token) for at in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [[token[:at], token[at:]] for _, at, _, token in found]


def _added(metadata: Metadata, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Tokens that are found in text before anything else: control tokens, and those that a user defined."""
    kinds = _kinds(metadata, len(tokens))
    phi3 = metadata.text("general.architecture") == "phi3" and metadata.text("tokenizer.ggml.model") == "llama"
    return [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": phi3 and token not in _PHI3_PLAIN,
            "normalized": False,
            "special": bool(kinds[number] != _USER),
        }
        for number, token in enumerate(tokens)
        if kinds[number] in (_UNKNOWN, _CONTROL, _USER)
    ]


def _kinds(metadata: Metadata, count: int) -> list[int]:
    if _KINDS not in metadata:
        return [1] * count
    return [int(kind) for kind in metadata.numbers(_KINDS, count)]


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}
