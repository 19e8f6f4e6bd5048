"""Options that decoders alone have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from stic.compiler.commands.groups import compose, gathered
from stic.compiler.commands.parameters import TIME
from stic.compiler.options import CompileOptions, DecoderOptions
from stic.runtime.format import CACHES


def _decoder(
    first_token_us: int | None, prompt: int | None, next_token_us: int | None, context: int | None, chunk: int | None,
    cache: str | None, head_bits: str | None,
) -> DecoderOptions:  # fmt: skip
    given: dict[str, Any] = {
        "context": context,
        "chunk": chunk,
        "cache": None if cache == "auto" else cache,
        "cache_free": cache == "auto",
        "head_bits": None if head_bits is None else int(head_bits),
        "prompt": prompt,
        "first_token_us": first_token_us,
        "next_token_us": next_token_us,
    }
    return DecoderOptions(**{name: value for name, value in given.items() if value is not None})


def _with_decoder(options: CompileOptions, decoder: DecoderOptions) -> CompileOptions:
    return replace(options, decoder=decoder)


_LEAST = click.IntRange(1)
decoder_group = compose(
    gathered(
        "decoder",
        _decoder,
        click.option(
            "--first-token",
            "first_token_us",
            type=TIME,
            metavar="TIME",
            help="Most time from a prompt to the first token of an answer; default: as little as the rest allows.",
        ),
        click.option(
            "--prompt", type=_LEAST, metavar="N", help="Tokens of that prompt; default: 256, or half of the context."
        ),
        click.option(
            "--next-token",
            "next_token_us",
            type=TIME,
            metavar="TIME",
            help="Most time of each token after it, up to the end of the context; default: likewise.",
        ),
        click.option(
            "--context",
            type=_LEAST,
            metavar="N",
            help="Tokens that a decoder's session can hold; default: 2048, or the model's, where that is less.",
        ),
        click.option(
            "--chunk", type=_LEAST, metavar="N", help="Tokens of a prompt that are computed at once; default: 128."
        ),
        click.option(
            "--kv",
            "cache",
            type=click.Choice(["auto", *CACHES[1:]]),
            default="auto",
            help="Type of a decoder's cached keys and values; default: what suits the budget, under a uniform planner"
            " int8.",
        ),
        click.option(
            "--head-bits",
            type=click.Choice(["2", "3", "4", "5", "6", "7", "8", "16"]),
            help="Bitwidth of a decoder's head under a uniform planner; default: --bits, but at least 6.",
        ),
    ),
    gathered("options", _with_decoder),
)
