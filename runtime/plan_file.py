"""The shape of plan.json: which fields it has, and of what type. The engine does not read it; people and Python do."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from stic.runtime.architecture import BLOCK_ACTIVATIONS
from stic.runtime.format import ACTIVATIONS
from stic.runtime.gpu_format import PLACES
from stic.runtime.limits import LIMITS


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`; of `whole` ones no other."""

    least: float = -1e18
    most: float = 1e18
    whole: bool = False
    noun: str = "a number"

    def holds(self, value: Any) -> bool:
        """Whether a value is one; true and false are not."""
        known = isinstance(value, int) if self.whole else isinstance(value, int | float)
        return known and not isinstance(value, bool) and math.isfinite(value) and self.least <= value <= self.most


@dataclass(frozen=True)
class Maybe:
    """A field that may be missing."""

    shape: Any


@dataclass(frozen=True)
class OrNull:
    """A value that may be null."""

    shape: Any


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]


COUNT = Number(0, 1 << 63, whole=True, noun="a whole number from 0 up")
LIMIT = Number(1, 1 << 63, whole=True, noun="a whole number from 1 up")
LAYER = Number(-2, LIMITS["blocks"], whole=True, noun="the number of a layer")  # and the embedding's and the head's
BITS = Number(0, 32, whole=True, noun="a bitwidth")
TIME = Number(0, 1e15, noun="a time in microseconds")
NUMBER = Number()

EVENT = {
    "kind": OneOf(("io", "compute", "stall")),
    "layer": LAYER,
    "level": Number(-1, 7, whole=True, noun="a level"),
    "start_us": TIME,
    "end_us": TIME,
    "bytes": COUNT,
    "place": Maybe(OneOf(PLACES)),
}
DECIDED = {
    "format": COUNT,
    "planner": str,
    "layers": [{"bits": [BITS], "resident": [BITS], "place": Maybe(OneOf(PLACES))}],
    "table_resident": bool,
    "read_ahead": COUNT,
    "overlap": bool,
    "budget": {
        "latency_us": OrNull(LIMIT),
        "memory_bytes": OrNull(LIMIT),
        "preload_bytes": OrNull(COUNT),
        "first_token_us": Maybe(LIMIT),
    },
    "margin": NUMBER,
    "proof": {
        "status": str,
        "objective": NUMBER,
        "bound": OrNull(NUMBER),
        "solve_seconds": NUMBER,
        "gap_limit": Maybe(NUMBER),
    },
    "notes": [str],
    "loss": Maybe(OrNull(NUMBER)),
}
FORECAST = {"prompt": LIMIT, "first_token_us": [(LIMIT, TIME)], "next_token_us": [(COUNT, TIME)]}
DESCRIBED = {
    "plan": DECIDED,
    "predicted_us": COUNT,
    "claimed_bytes": COUNT,
    "timeline": [EVENT],
    "forecast": Maybe(FORECAST),  # of a decoder
}
_NOUNS = {str: "a text", bool: "true or false", dict: "an object"}
PLAN_FILE = {
    "format": COUNT,
    "model": {
        "name": str,
        "family": Maybe(str),
        "activation": OneOf((*ACTIVATIONS, *BLOCK_ACTIVATIONS)),
        "epsilon": Number(0, 1, noun="a number from 0 to 1"),
        "elastic": Maybe(bool),
        "labels": Maybe([str]),
        "positions": Maybe(COUNT),
        "reading": Maybe({"kind": str, "prompt": str, "similarity": str}),
    },
    "architecture": Maybe(dict),  # of a decoder: `stic.runtime.architecture` says what is in it
    "text": Maybe({"bos": OrNull(str), "eos": OrNull(str), "add_bos": bool}),
    "target": str,
    "gpu": Maybe(str),
    "quantizer": str,
    "family": Maybe([DESCRIBED]),
    **DESCRIBED,
}


def read_plan_file(text: bytes) -> dict[str, Any]:
    """plan.json as plain data. Raises ValueError with what is wrong with it, and where."""
    try:
        data = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("plan.json is nested too deeply") from None
    except ValueError as error:  # of the syntax, the encoding, or the number of digits
        raise ValueError(f"plan.json is not JSON ({error})") from error
    _check(data, PLAN_FILE, "plan.json")
    found: dict[str, Any] = data
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _check(value: Any, shape: Any, where: str) -> None:
    """`value` is of `shape`: fields, a list of one shape, a tuple of several, a type, or one of the classes above."""
    if isinstance(shape, OrNull):
        if value is not None:
            _check(value, shape.shape, where)
    elif isinstance(shape, dict):
        _check_fields(value, shape, where)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is not a list")
        for number, item in enumerate(value):
            _check(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, tuple):
        if not isinstance(value, list) or len(value) != len(shape):
            raise ValueError(f"{where} is not a list of {len(shape)}")
        for number, (item, inner) in enumerate(zip(value, shape, strict=True)):
            _check(item, inner, f"{where}[{number}]")
    elif isinstance(shape, OneOf):
        if value not in shape.words:
            raise ValueError(f"{where} is not one of {', '.join(shape.words)}")
    elif isinstance(shape, Number):
        if not shape.holds(value):
            raise ValueError(f"{where} is not {shape.noun}")
    elif not isinstance(value, shape):
        raise ValueError(f"{where} is not {_NOUNS[shape]}")


def _check_fields(value: Any, shape: dict[str, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    for name in value:
        if name not in shape:
            raise ValueError(f"{where} has an unknown field {name!r}")
    for name, inner in shape.items():
        if name in value:
            _check(value[name], inner.shape if isinstance(inner, Maybe) else inner, f"{where}: {name}")
        elif not isinstance(inner, Maybe):
            raise ValueError(f"{where} has no {name}")
