"""Times and sizes as people write them: `200ms`, `1.5s`, `20MiB`, `100MB`. They are integers inside stic."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal

from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-zµμ]*)\s*", re.ASCII)
TIMES_US = {"us": 1, "µs": 1, "μs": 1, "ms": 1_000, "s": 1_000_000, "min": 60_000_000}
SIZES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}


def _parse(text: str, units: dict[str, int], what: str, example: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise InputError(f"'{text}' is not {what}: write a number and a unit, for example {example}")
    number, unit = match.groups()
    folded = {name.lower(): factor for name, factor in units.items()}
    if unit == "" and Decimal(number) != 0:
        raise InputError(f"'{text}' has no unit: write for example {example}")
    if unit and unit.lower() not in folded:
        raise InputError(f"'{text}' has an unknown unit '{unit}': stic knows {', '.join(units)}")
    value = Decimal(number) * folded.get(unit.lower(), 1)
    if value > 2**62:
        raise InputError(f"'{text}' is larger than any machine's")
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def parse_time_us(text: str) -> int:
    """Microseconds of `200ms`, `1.5s`, `800us`; a bare `0` needs no unit. Raises InputError."""
    return _parse(text, TIMES_US, "a time", "200ms or 1.5s")


def parse_bytes(text: str) -> int:
    """Bytes of `20MiB` (2^20), `100MB` (10^6), `4KiB`; a bare `0` needs no unit. Raises InputError."""
    return _parse(text, SIZES, "a size", "20MiB or 100MB")


def parse_storage(text: str) -> EmulatedStorage:
    """Storage of `100MB` a second, or of `300MB,25000` requests a second as well. Raises InputError."""
    rate, comma, requests = (part.strip() for part in text.partition(","))
    if comma and not requests.isdecimal():
        raise InputError(f"'{text}' is not a storage: write bytes a second, and requests if they matter: 300MB,25000")
    return EmulatedStorage(parse_bytes(rate), int(requests) if comma else None)


def _round(value: float) -> str:
    """Three significant digits, without an exponent and without trailing zeros."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_time(us: float) -> str:
    """`850us`, `12.5ms`, `1.5s`: three significant digits."""
    for unit, factor in (("s", 1e6), ("ms", 1e3)):
        if abs(us) >= factor * 0.9995:
            return _signed(us / factor) + unit
    return _signed(us) + "us"


def format_bytes(size: float) -> str:
    """`512B`, `4KiB`, `20.4MiB`: three significant digits, binary units."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(size) >= factor * 0.9995:
            return _signed(size / factor) + unit
    return _signed(size) + "B"


def quote_time(us: float) -> str:
    """A limit as people give it: the shortest text that `parse_time_us` reads as just these whole microseconds."""
    return _shortest(round(us), {unit: TIMES_US[unit] for unit in ("s", "ms", "us")})


def quote_bytes(size: int) -> str:
    """A limit as people give it, `3.3MiB` or `100MB`: the shortest text that `parse_bytes` reads as just this size."""
    return _shortest(size, {unit: SIZES[unit] for unit in ("GiB", "MiB", "KiB", "GB", "MB", "kB", "B")})


def _shortest(value: int, units: dict[str, int]) -> str:
    """The fewest digits at any unit that is not larger than the value; of equal ones the first unit's.

    A bare count of the smallest unit, without a fraction, always reads back.
    """
    found: list[tuple[int, str]] = []
    for unit, factor in units.items():
        if factor > max(value, 1):
            continue
        for digits in range(len(str(factor))):
            number = f"{Decimal(value) / factor:.{digits}f}"
            if int((Decimal(number) * factor).to_integral_value(ROUND_HALF_EVEN)) == value:
                found.append((len(number.replace(".", "")), number + unit))
                break
    return min(found, key=lambda text: text[0])[1]


def _signed(value: float) -> str:
    return ("-" if value < 0 else "") + _round(abs(value))
