"""How an answer is drawn: what `stic generate`, `stic chat` and `stic deploy --prompt` share."""

from __future__ import annotations

import click

from stic.compiler.commands.groups import gathered
from stic.compiler.commands.parameters import SENTENCE
from stic.compiler.text.answering import Wish
from stic.runtime.sampling import Sampling


def _wish(
    max_tokens: int,
    temperature: float,
    greedy: bool,
    top: tuple[int, float, float],
    penalty: float,
    seed: int,
    stops: tuple[str, ...],
) -> Wish:
    top_k, top_p, min_p = top
    sampling = Sampling(0.0 if greedy else temperature, top_k, top_p, min_p, penalty, seed=seed)
    return Wish(max_tokens, sampling, stops)


def _filters(top_k: int, top_p: float, min_p: float) -> tuple[int, float, float]:
    return top_k, top_p, min_p


_max_tokens = click.option(
    "--max-tokens",
    type=click.IntRange(1, 1 << 20),
    default=256,
    show_default=True,
    metavar="N",
    help="Tokens of an answer, at most.",
)
wish_group = gathered(
    "wish",
    _wish,
    _max_tokens,
    click.option(
        "--temperature",
        type=float,
        default=0.7,
        show_default=True,
        metavar="T",
        help="Above 1: more varied; 0: always the likeliest token.",
    ),
    click.option("--greedy", is_flag=True, help="Always the likeliest token: --temperature 0."),
    gathered(
        "top",
        _filters,
        click.option(
            "--top-k",
            type=click.IntRange(0),
            default=40,
            show_default=True,
            metavar="N",
            help="Draw from so many of the likeliest tokens; 0: from all.",
        ),
        click.option(
            "--top-p",
            type=float,
            default=0.95,
            show_default=True,
            metavar="SHARE",
            help="Draw from the likeliest tokens that together have this probability; 1: from all.",
        ),
        click.option(
            "--min-p",
            type=float,
            default=0.05,
            show_default=True,
            metavar="SHARE",
            help="Draw from tokens that have this share of the likeliest one's probability; 0: from all.",
        ),
    ),
    click.option(
        "--repetition-penalty",
        "penalty",
        type=float,
        default=1.0,
        show_default=True,
        metavar="R",
        help="Above 1: recent tokens become less likely.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, (1 << 64) - 1),
        default=0,
        show_default=True,
        metavar="N",
        help="The same seed gives the same text.",
    ),
    click.option("--stop", "stops", type=SENTENCE, multiple=True, metavar="TEXT", help="End before this text; repeat."),
)
