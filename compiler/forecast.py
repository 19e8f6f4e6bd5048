"""What a decoder's plan takes, by the tokens of a prompt and by the position of the next one, from replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stic.compiler.passes import PassCosts
from stic.compiler.plan import Plan, Problem
from stic.compiler.simulate import first_token_us, next_token_us
from stic.runtime.errors import PackageError
from stic.runtime.format import TILE
from stic.runtime.package import Package

MOST_LENGTHS = 32  # of prompts that are whole chunks
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Forecast:
    """Predicted times of one plan, in microseconds; between the points they grow evenly."""

    prompt: int  # tokens that the plan was made for
    first_token: Points  # (tokens of the prompt, from the prompt to the first token)
    next_token: Points  # (position, that token)

    def first_us(self, tokens: int) -> float:
        """Time to the first token after a prompt of so many."""
        return _between(self.first_token, tokens)

    def next_us(self, position: float) -> float:
        """Time of the token at a position."""
        return _between(self.next_token, position)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as plan.json has it."""
        times = {"first_token_us": self.first_token, "next_token_us": self.next_token}
        return {"prompt": self.prompt, **{name: [list(point) for point in points] for name, points in times.items()}}


def packaged_forecast(package: Package) -> Forecast:
    """The forecast of a decoder's package, of the plan of its own number. Raises PackageError if it has none."""
    data = package.plan.get("forecast")
    if data is None:
        raise PackageError(f"{package.path / 'plan.json'} holds no forecast: compile the package again")

    def points(name: str) -> Points:
        return tuple((int(at), float(us)) for at, us in data[name])

    return Forecast(int(data["prompt"]), points("first_token_us"), points("next_token_us"))


def forecast(plan: Plan, problem: Problem, costs: PassCosts) -> Forecast:
    """Replay prompts of a few lengths, whole chunks among them, and tokens at a few positions."""
    context, prompt = costs.context, sum(one.tokens for one in problem.prompt)
    chunk = max(one.tokens for one in problem.prompt)
    whole = range(chunk, context, chunk)
    step = -(-len(whole) // MOST_LENGTHS) if len(whole) else 1
    lengths = sorted({1, min(TILE, context), prompt, max(1, context - 1), *whole[::step]})
    positions = sorted({(context - 1) * quarter // 4 for quarter in range(5)})
    firsts = tuple((n, first_token_us(plan, problem, costs.prompt(n, chunk))) for n in lengths)
    return Forecast(prompt, firsts, tuple((at, next_token_us(plan, problem, costs.next_token(at))) for at in positions))


def _between(points: Sequence[tuple[int, float]], at: float) -> float:
    xs, ys = zip(*points, strict=True)
    return float(np.interp(at, xs, ys))
