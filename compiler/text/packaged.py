"""What a package holds of its model's text: tokenizer, template, and the tokens that begin and end it."""

from __future__ import annotations

from typing import Any

from stic.compiler.decoder.model import Text
from stic.compiler.text.template import ChatTemplate
from stic.compiler.text.tokens import Coder
from stic.runtime.architecture import Architecture, from_json
from stic.runtime.errors import InputError, PackageError
from stic.runtime.package import Package


def text_to_json(text: Text) -> dict[str, Any]:
    """What plan.json says of text, beside the files of the package."""
    return {"bos": text.bos, "eos": text.eos, "add_bos": text.add_bos}


def is_decoder(package: Package) -> bool:
    """Whether the package is of a decoder."""
    return "architecture" in package.plan


def check_encoder(package: Package) -> None:
    """Raise InputError for a decoder's package, where one of an encoder is needed."""
    if is_decoder(package):
        raise InputError(f"{package.path} is a decoder, which goes on with a text: use `stic generate` or `stic chat`")


def architecture_of(package: Package) -> Architecture:
    """What a packaged decoder is. Raises InputError for an encoder, PackageError for a damaged plan.json."""
    if not is_decoder(package):
        raise InputError(f"{package.path} is an encoder, which continues no text: use `stic run`")
    try:
        return from_json(package.plan["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{package.path}: plan.json says nothing sound of the architecture: {error}") from error


def text_of(package: Package) -> Text:
    """Tokenizer and template of a packaged decoder. Raises PackageError for a damaged package."""
    said = package.plan.get("text", {})
    try:
        template = None if package.template is None else package.template.decode()
        return Text(package.tokenizer, template, said["bos"], said["eos"], bool(said["add_bos"]))
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise PackageError(f"{package.path}: plan.json or the template says nothing sound of text: {error}") from error


def prompt_of(package: Package, ids: list[int]) -> list[int]:
    """The tokens of a prompt. Raises InputError for an empty one, or one that fills the context."""
    if not ids:
        raise InputError("the prompt is empty: give at least one token to go on from")
    context = package.max_length
    if len(ids) >= context:
        raise InputError(
            f"the prompt has {len(ids)} tokens, and the package a context of {context}, answers included:"
            " shorten it, or compile with a larger --context"
        )
    return ids


def coder_of(package: Package) -> Coder:
    """The tokenizer of a packaged decoder. Raises InputError if it has none."""
    return Coder(text_of(package), architecture_of(package), str(package.path))


def template_of(package: Package) -> ChatTemplate:
    """The chat template of a packaged decoder. Raises InputError if it has none."""
    return ChatTemplate(text_of(package), str(package.path))
