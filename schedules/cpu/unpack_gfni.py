"""The decoder of AVX-512 with GFNI: 512 codes from one register of each plane.

    plane p    64 bytes, 8 codes each        vpermb, vpunpck: bytes of all planes side by side, so that every qword
                                             holds a matrix of bits, a row a plane
    matrix     vgf2p8affineqb                transposes it: byte j of the qword <- bit j of its 8 bytes, a code each
    codes      vpermb                        2..6 bits: one table register; vpermi2b: 7 bits; twice and a blend: 8

A code needs 2, 4 or 8 bytes of a qword, so a qword holds the codes of 4, 2 or 1 groups, and shifts bring the others
down; bits above a code's are left there, because vpermb looks at 6 bits and the table is repeated.

Instead of 2 b instructions a group (unpack_avx512.py) it takes 2 at 2 bits, 3 to 4 at 3 and 4, 5 at more; bound by the
shuffle ports.
"""

from __future__ import annotations

from collections.abc import Sequence

from stic.schedules.cpu.isa import has
from stic.schedules.cpu.unpack import GROUP_BYTES, Decoder, Vectors
from stic.schedules.cpu.unpack_avx512 import look_up, table_of
from stic.schedules.pack import GROUP
from stic.schedules.tir import Buffer, Expr, T, bind, bits, intrinsic, load, local, shuffle, splat, store
from stic.targets.target import Target

_CHUNK = 8  # groups decoded together
_BYTES = f"int8x{GROUP}"
# Byte j holds only bit j: as x of vgf2p8affineqb it makes the matrix come out transposed.
_IDENTITY = 0x8040201008040201 - (1 << 64)


def _interleave(low: Expr, high: Expr, width: int) -> list[Expr]:
    """Elements of `width` bytes of two registers by turns: two registers."""
    element, count = f"int{8 * width}", GROUP // width
    name = f"llvm.vector.interleave2.v{2 * count}i{8 * width}"
    both = intrinsic(name, f"{element}x{2 * count}", *(bits(part, f"{element}x{count}") for part in (low, high)))
    with local((2 * count, element)) as (halves,):
        store(halves, 0, both, 2 * count)
        return [bind(bits(load(halves, at, count), _BYTES)) for at in (0, count)]


def _side_by_side(columns: list[Expr | None]) -> list[Expr]:
    """Interleave registers until element i of the results holds byte i of every column, in column order.

    A column that is missing is filled with its neighbour. Returns as many registers as there are columns.
    """
    parts: list[list[Expr] | None] = [None if column is None else [column] for column in columns]
    width = 1
    while len(parts) > 1:
        merged: list[list[Expr] | None] = []
        for low, high in zip(parts[::2], parts[1::2], strict=True):
            if high is None:
                merged.append(None)
                continue
            pairs = zip(high if low is None else low, high, strict=True)
            merged.append([half for pair in pairs for half in _interleave(*pair, width)])
        parts, width = merged, 2 * width
    assert parts[0] is not None
    return parts[0]


def _order(codes: int) -> list[int]:
    """The order of a plane's bytes in which a qword with `codes` codes a byte takes them from as many groups."""
    blocks = range(0, GROUP, 8 * codes)
    return [block + 8 * group + qword for block in blocks for qword in range(8) for group in range(codes)]


def _decode(planes: Sequence[Buffer], at: Expr, table: list[Expr]) -> list[Vectors]:
    width = next(size for size in (2, 4, 8) if size >= len(planes))
    columns: list[Expr | None] = [None] * (width - len(planes))
    for plane in planes:
        column = bits(load(plane, at, _CHUNK * GROUP_BYTES), _BYTES)
        columns.append(bind(column if width == 8 else shuffle([column], _order(8 // width))))
    identity = bits(splat(T.int64(_IDENTITY), 8), _BYTES)
    groups: list[Vectors] = []
    for matrix in _side_by_side(columns):
        codes = bind(intrinsic("llvm.x86.vgf2p8affineqb.512", _BYTES, identity, matrix, T.int8(0)))
        for group in range(8 // width):
            shift = 8 - (group + 1) * width
            moved = bits(bits(codes, "uint16x32") >> splat(T.uint16(shift), 32), _BYTES) if shift else codes
            groups.append([(look_up(table, bind(moved)), GROUP)])
    return groups


def decoder_gfni(target: Target, bit_count: int) -> Decoder | None:
    """Cores with AVX-512 VBMI and GFNI (Ice Lake, Zen 4 and later)."""
    if not has(target, "avx512bw", "avx512_vbmi", "gfni"):
        return None
    return Decoder(_CHUNK, lambda lut: table_of(target, lut, bit_count), _decode)
