"""What a decoder's directory says of text: tokenizer, chat template, and the tokens that begin and end.

A token that ends an answer is named in up to three files, and leaving one out makes models talk on: `stops` is their
union, with the one that the template puts behind an answer. A template stands in chat_template.jinja, or in
tokenizer_config.json, alone or in a list of named ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stic.compiler.decoder.model import Text
from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.sentence_modules import read_object
from stic.compiler.text.ending import turn_end
from stic.runtime.errors import InputError

_TEMPLATE = "default"  # of several, the one for plain chats


@dataclass(frozen=True)
class TextFiles:
    """What the files say."""

    text: Text
    bos: int | None
    stops: tuple[int, ...]  # ascending


def read_text(folder: Path, config: Config, vocabulary: int) -> TextFiles:
    """Read the files that there are; none is needed. Raises InputError for one that is damaged.

    Tokens that the vocabulary does not have are left out: configurations keep ids of other models.
    """
    settings = _object(folder / "tokenizer_config.json")
    generation = _object(folder / "generation_config.json")
    tokenizer = folder / "tokenizer.json"
    content = tokenizer.read_bytes() if tokenizer.is_file() else None
    said = {} if content is None else _content(content, tokenizer)
    ids, template = _ids(said, settings, tokenizer), _template(folder, settings)
    bos, eos = _token(settings.get("bos_token")), _token(settings.get("eos_token"))
    last = turn_end(Text(content, template, bos, eos), [token for token in ids if token is not None])
    first = _numbers(config.raw("bos_token_id", None), config.where)
    stops = _numbers(config.raw("eos_token_id", None), config.where)
    stops += _numbers(generation.get("eos_token_id"), str(folder / "generation_config.json"))
    stops += [ids[token] for token in (eos, last) if token in ids]
    number = ids.get(bos, first[0] if first else None)
    names: dict[int | None, str | None] = {number: name for name, number in ids.items()}
    text = Text(
        content,
        template,
        bos if bos is not None else names.get(number),
        eos if eos is not None else next((names[stop] for stop in stops if stop in names), None),
        _adds_bos(settings, said, number),
    )
    held = {stop for stop in stops if stop < vocabulary}
    return TextFiles(text, number if number is None or number < vocabulary else None, tuple(sorted(held)))


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _content(content: bytes, path: Path) -> dict[str, Any]:
    try:
        said = json.loads(content)
        if not isinstance(said, dict) or not isinstance(said.get("model"), dict):
            raise ValueError("it holds no tokenizer")
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; download it again") from error
    return said


def _ids(tokenizer: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> dict[str | None, int]:
    """Token -> id of what is added to the vocabulary, special tokens above all, as either file lists it."""
    try:
        decoder = settings.get("added_tokens_decoder") or {}
        ids: dict[str | None, int] = {str(one["content"]): int(number) for number, one in decoder.items()}
        return {**ids, **{str(one["content"]): int(one["id"]) for one in tokenizer.get("added_tokens") or []}}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path.parent} lists added tokens as nobody does: {error!r}; download it again") from error


def _token(said: Any) -> str | None:
    """A token, which is written as it is or as an object with its content."""
    said = said.get("content") if isinstance(said, Mapping) else said
    return said if isinstance(said, str) else None


def _numbers(said: Any, where: str) -> list[int]:
    numbers = [] if said is None else said if isinstance(said, list) else [said]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in numbers):
        raise InputError(f"{where}: tokens that begin or end a text are {said!r}; expected numbers of tokens")
    return [number for number in numbers if number >= 0]  # some write -1 for none


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}; download it again") from error
    said = settings.get("chat_template")
    if isinstance(said, list):
        named = {one.get("name"): one.get("template") for one in said if isinstance(one, Mapping)}
        said = named.get(_TEMPLATE)
    if said is not None and not isinstance(said, str):
        raise InputError(
            f"{folder / 'tokenizer_config.json'}: chat_template is no template, nor a list with one named {_TEMPLATE!r}"
        )
    return said


def _adds_bos(settings: Mapping[str, Any], tokenizer: Mapping[str, Any], bos: int | None) -> bool:
    """Whether a plain prompt starts with bos: as add_bos_token says, else as tokenizer.json's post-processor does."""
    said = settings.get("add_bos_token")
    return bos is not None and (bool(said) if said is not None else _puts(tokenizer.get("post_processor"), bos))


def _puts(processor: Any, bos: int) -> bool:
    """Whether a post-processor of tokenizer.json puts a token before a text."""
    if not isinstance(processor, Mapping):
        return False
    if processor.get("type") == "Sequence":
        return any(_puts(one, bos) for one in processor.get("processors") or [])
    pieces: list[Any] = processor.get("single") or [{}]
    name = (pieces[0].get("SpecialToken") or {}).get("id") if isinstance(pieces[0], Mapping) else None
    return bos in ((processor.get("special_tokens") or {}).get(name) or {}).get("ids", [])
