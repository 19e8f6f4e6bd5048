"""What passes of a decoder cost, and what a plan takes for a prompt or a token because of it.

Costs are of a few passes that were measured; a forecast replays a plan at other lengths and positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from stic.compiler.plan import BlockCost, ComputeCost, IoCost, Pass, Plan, Problem
from stic.compiler.simulate import first_token_us, next_token_us
from stic.runtime.errors import PackageError
from stic.runtime.format import TILE
from stic.runtime.package import Package

MOST_LENGTHS = 32  # of prompts that are whole chunks
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class PassCosts:
    """Costs of reading and of passes, from a few that were measured.

    Attention's time grows with the position, all other time does not, so that a pass at any position lies between
    those at both ends of the context. Between two numbers of tokens it grows by tiles.
    """

    io: IoCost
    context: int  # tokens
    ends: Mapping[int, tuple[ComputeCost, ComputeCost]]  # tokens of a pass -> at the start of the context, at its end
    measured: bool  # False: estimated, as `notes` say
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if 1 not in self.ends:
            raise ValueError("costs of passes have those of one token")

    def compute(self, tokens: int, start: int) -> ComputeCost:
        """What a pass of so many tokens from position `start` on computes."""
        early, late = self._of(tokens)
        room = self.context - tokens
        return _mix(early, late, start / room if room > 0 else 0.0)

    def in_context(self, measured: int, context: int) -> PassCosts:
        """The costs in a context of other length than the one whose ends were measured: attention grows evenly."""
        ends = {}
        for tokens, (early, late) in self.ends.items():
            room, wanted = measured - tokens, context - tokens
            ends[tokens] = (early, _mix(early, late, wanted / room) if room > 0 else late)
        return replace(self, context=context, ends=ends)

    def next_token(self, position: int) -> Pass:
        """The pass of one token that is at `position`."""
        return Pass(position, 1, self.compute(1, position), True)

    def prompt(self, tokens: int, chunk: int) -> tuple[Pass, ...]:
        """The passes of a prompt from the context's start, in chunks of at most `chunk` tokens."""
        starts = range(0, tokens, chunk)
        sizes = [min(chunk, tokens - start) for start in starts]
        return tuple(
            Pass(start, size, self.compute(size, start), start + size == tokens)
            for start, size in zip(starts, sizes, strict=True)
        )

    def _of(self, tokens: int) -> tuple[ComputeCost, ComputeCost]:
        """Compute at both ends of the context."""
        known = sorted(self.ends)
        if tokens in self.ends or len(known) == 1:
            return self.ends[tokens if tokens in self.ends else known[0]]
        low, high = next(((a, b) for a, b in pairwise(known) if tokens <= b), (known[-2], known[-1]))
        share = (_tiles(tokens) - _tiles(low)) / (_tiles(high) - _tiles(low))
        early, late = (_mix(a, b, share) for a, b in zip(self.ends[low], self.ends[high], strict=True))
        return early, late


def _tiles(tokens: int) -> float:
    """Tiles of so many tokens; less than a tile's are computed token by token."""
    return tokens / TILE if tokens < TILE else -(-tokens // TILE)


def _mix(a: ComputeCost, b: ComputeCost, share: float) -> ComputeCost:
    """`a` at share 0, `b` at 1, what lies between them in between."""

    def mix(x: float, y: float) -> float:
        return x + (y - x) * share

    blocks = tuple(
        BlockCost(mix(x.block_us, y.block_us), {bits: mix(us, y.slice_us[bits]) for bits, us in x.slice_us.items()})
        for x, y in zip(a.blocks, b.blocks, strict=True)
    )
    return ComputeCost(
        blocks, mix(a.embed_us, b.embed_us), mix(a.head_us, b.head_us), mix(a.submit_us, b.submit_us)
    )  # fmt: skip


def passes_to_json(costs: PassCosts) -> dict[str, Any]:
    """Costs as plain data."""
    return asdict(costs)


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
