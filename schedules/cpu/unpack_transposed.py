"""Turn planes into codes by transposing bits in registers: what the wide decoders of AVX2 and AArch64 share.

    byte i of plane p holds the bits of codes 8 i + j, j = 0..7, so a register of a plane is bits [i][j]

    exchange   registers of two planes swap every second bit (then pairs, then nibbles), until a field of 2, 4 or 8
               bits is a code: log2(field) rounds; a byte holds the codes of 4, 2 or 1 values of j
    merge      bytes, then their pairs and fours, of two registers are interleaved, as many rounds as registers differ
               in j; then fields are looked up, which gives a register each, and the rest are merged

Rounds before the lookup work on registers that hold several codes a byte. A round of exchanging costs six instructions
for two registers, one of merging two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from stic.schedules.cpu.unpack import Vectors
from stic.schedules.pack import GROUP
from stic.schedules.tir import Buffer, Expr, T, bits, load, shuffle, splat, store

_LANE = 16  # bytes in which instructions interleave
_MASKS = {1: 0x55, 2: 0x33, 4: 0x0F}  # bits at even places, places of two, of four
Keep = Callable[[Expr], Expr]
Swap = Callable[[Expr, Expr, int, int, Keep], tuple[Expr, Expr]]
WORK = 16384  # bytes of names for one step


def names(work: Buffer, width: int) -> Keep:
    """Name vectors of `width` int8 by storing them in `work`, each in a place of its own; LLVM makes them registers.

    `bind` would do, but TVM takes a time quadratic in the number of bound vectors.
    """
    places = count(0, width)

    def keep(value: Expr) -> Expr:
        place = next(places)
        store(work, place, value, width)
        return load(work, place, width)

    return keep


def field_bits(bit_count: int) -> int:
    """Bits of the field that holds a code: 2, 4 or 8."""
    return next(size for size in (2, 4, 8) if size >= bit_count)


def exchange(a: Expr, b: Expr, distance: int, width: int, keep: Keep) -> tuple[Expr, Expr]:
    """Swap the bits of `a` that lie `distance` above those of _MASKS with those of `b` at _MASKS; both int8.

    Shifts are those of 16-bit lanes, as x86 has no others; what they bring from the byte beside is masked out.
    """
    words, count, shift = f"uint16x{width // 2}", width // 2, T.uint16(distance)
    moved = bits(bits(a, words) >> splat(shift, count), f"int8x{width}")
    change = keep((moved ^ b) & splat(T.int8(_MASKS[distance]), width))
    back = bits(bits(change, words) << splat(shift, count), f"int8x{width}")
    return keep(a ^ back), keep(b ^ change)


def _interleaved(a: Expr, b: Expr, width: int, unit: int, keep: Keep) -> list[Expr]:
    """The low, then the high halves of all lanes, with units of bytes from `a` and `b` in turn."""
    results = []
    for half in (0, _LANE // 2):
        order = []
        for lane in range(0, width, _LANE):
            for at in range(lane + half, lane + half + _LANE // 2, unit):
                order += [*range(at, at + unit), *range(width + at, width + at + unit)]
        results.append(keep(shuffle([a, b], order)))
    return results


def _merged(parts: list[list[Expr]], width: int, unit: int, keep: Keep) -> list[list[Expr]]:
    """One round: parts that differ in the lowest bit of j become one."""
    return [
        [vector for a, b in zip(low, high, strict=True) for vector in _interleaved(a, b, width, unit, keep)]
        for low, high in zip(parts[::2], parts[1::2], strict=True)
    ]


def transpose(
    planes: Sequence[Buffer],
    at: Expr,
    width: int,
    keep: Keep,
    look_up: Callable[[Expr], list[Expr]],
    swap: Swap = exchange,
) -> list[Vectors]:
    """Decode the codes of `width` bytes of every plane from byte `at` on: width / 8 groups of 64 weights.

    look_up(codes) gives the weights of every field of a register, lowest field first, a register each.
    """
    field = field_bits(len(planes))
    order = list(range(width))
    if width > _LANE:  # upper lanes are to hold the third and fourth of every four bytes
        order = [16 * (i >> 3 & 1) + 8 * (i >> 2 & 1) + 4 * (i >> 1 & 1) + 2 * (i >> 4) + (i & 1) for i in range(width)]
    zero = splat(T.int8(0), width)
    registers = []  # one for every bit of a code, the lowest first
    for plane in reversed(planes):
        part = bits(load(plane, at, width), f"int8x{width}")
        registers.append(keep(part if width == _LANE else shuffle([part], order)))
    registers += [zero] * (field - len(planes))
    distance = 1
    while distance < field:
        for i in range(field):
            if not i & distance:
                pair = registers[i], registers[i + distance]
                registers[i], registers[i + distance] = swap(*pair, distance, width, keep)
        distance *= 2

    parts, unit = [[register] for register in registers], 1
    while len(parts) > 1:
        parts, unit = _merged(parts, width, unit, keep), 2 * unit
    found = [look_up(register) for register in parts[0]]
    parts = [list(weights) for weights in zip(*found, strict=True)]
    while len(parts) > 1:
        parts, unit = _merged(parts, width, unit, keep), 2 * unit
    vectors = [(vector, width) for vector in parts[0]]
    together = GROUP // width
    return [vectors[i : i + together] for i in range(0, len(vectors), together)]
