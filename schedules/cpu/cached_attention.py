"""stic_cached_attention_f16, stic_cached_attention_i8: queries of one key head over the cache, float32 but for what the
cache holds.

    rows: up to 4 pairs (token, query head), a token's heads together, so that keys and values are read once for all
      S[row][key]      lanes are keys       fma over features           rows x key tiles in registers
      P[row][key]      2^((S - max) log2 e), summed in 16 lanes         0 where a row may not read
      O[row][feature]  lanes are features   fma over keys               rows x 16 features in registers

    registers, native vectors       1 row      2 rows     3 rows     4 rows
      AVX-512 (32 zmm)              8          2 x 4      3 x 4      4 x 4        of 16 lanes, tiles of keys or features
      AVX2 (16 ymm), NEON (32 q)    4          2 x 2      3          4            of 16 lanes: two ymm, four q

A step of a feature (or key) loads a vector of each tile and converts it (float16 1 instruction on x86, int8 2), and
broadcasts a number of each row: 24 instructions for 16 fma at 4 rows with AVX-512, 17 for 8 at one row. Bound by the
multiply-add pipes at 4 rows, by issue at one; softmax takes about 22 instructions for 16 keys of a row. Tiles past the
last are taken for the last once more, which changes nothing and needs no second loop.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu.isa import has
from stic.schedules.cpu.vector_math import exp2_16, fma, maximum, softcap
from stic.schedules.pack import pad16
from stic.schedules.shape import DecoderShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    T,
    bind,
    bits,
    cast,
    f32,
    kernel,
    load,
    local,
    loop,
    pick,
    splat,
    store,
    when,
)
from stic.targets.target import Target

ROWS = 4  # of scratch, and of queries at work together
_LEAST = -3.0e38  # below every score
_LOG2_E = 1.44269504088896341
_UNSIGNED = f"uint32x{LANES}"


def _units(target: Target, rows: int) -> int:
    """Tiles of keys, or of features, that so many rows keep in registers."""
    if has(target, "avx512f"):
        return 8 if rows == 1 else 4
    return {1: 4, 2: 2}.get(rows, 1)


class _Block:
    """The attention of up to ROWS rows, and its steps; what a step says of a row it finds in `local` buffers.

    Scratch is (ROWS, context): scores of every key, then weights.
    """

    def __init__(
        self, target: Target, shape: DecoderShape, buffers: dict[str, Buffer], rows: dict[str, Buffer]
    ) -> None:
        self.target, self.shape, self.buffers, self.rows = target, shape, buffers, rows
        self.width, self.padded = shape.head_dim, pad16(shape.head_dim)

    def emit(self, first: Expr, count: Expr) -> None:
        """Emit the attention of `count` rows from `first` on."""
        with loop(count) as row:
            self.place(first, row)
        start, last = bind(self.rows["start"][0]), bind(self.rows["last"][count - 1])
        tiles = bind(start // LANES), bind(last // LANES)
        for rows in range(1, ROWS + 1):
            with when(count == rows):
                self.scores(rows, tiles)
        with loop(count) as row:
            self.weights(row, tiles)
        for rows in range(1, ROWS + 1):
            with when(count == rows):
                self.outputs(rows, start, last)

    def place(self, first: Expr, row: Expr) -> None:
        """Emit where a row is in q and in out, and the first and the last key that it reads."""
        queries, position, window = (self.buffers[name] for name in ("queries", "position", "window"))
        token = bind((first + row) // queries)
        head = bind(first + row - token * queries)
        last = bind(position + token)
        store(self.rows["at"], row, head * (self.width * LANES) + token, 1)
        store(self.rows["last"], row, last, 1)
        store(self.rows["start"], row, pick(window > 0, T.max(last - window + 1, 0), 0), 1)

    def score_at(self, row: Expr, key: Expr) -> Expr:
        """Where scratch has a row's number for a key."""
        return row * self.buffers["context"] + key

    def wide(self, name: str, at: Expr) -> Expr:
        """16 numbers of the cache as float32."""
        return bind(cast(load(self.buffers[name], at), f"float32x{LANES}"))

    def scores(self, rows: int, tiles: tuple[Expr, Expr]) -> None:
        """Emit sums over features of so many rows for all keys of the tiles from the first to the last."""
        units = _units(self.target, rows)
        at = [bind(self.rows["at"][row]) for row in range(rows)]
        with loop((tiles[1] - tiles[0] + units) // units) as step, local((rows * units * LANES, "float32")) as (acc,):
            taken = [bind(T.min(tiles[0] + step * units + unit, tiles[1])) for unit in range(units)]
            for i in range(rows * units):
                store(acc, i * LANES, f32(0.0))
            with loop(self.width) as d:
                keys = [self.wide("keys", (tile * self.width + d) * LANES) for tile in taken]
                _advance(acc, keys, [self.buffers["q"][place + d * LANES] for place in at])
            for row in range(rows):
                for unit, tile in enumerate(taken):
                    score = load(acc, (row * units + unit) * LANES)
                    store(self.buffers["scratch"], self.score_at(row, tile * LANES), score)

    def finished(self, score: Expr, key: Expr) -> Expr:
        """Scores from sums over features."""
        if self.shape.cache == "int8":
            score = bind(score * load(self.buffers["key_scale"], key))
        return score if self.shape.cap is None else softcap(score, self.shape.cap)

    def weights(self, row: Expr, tiles: tuple[Expr, Expr]) -> None:
        """Emit a row's weights in the place of its sums, and the inverse of their sum."""
        scratch, start = self.buffers["scratch"], bind(self.rows["start"][row])
        keys = bind(splat(self.rows["last"][row] - start))
        count = bind(tiles[1] - tiles[0] + 1)
        with local((LANES, "float32"), (LANES, "float32")) as (greatest, total):
            store(greatest, 0, f32(_LEAST))
            with loop(count) as i:
                key = bind((tiles[0] + i) * LANES)
                score = self.finished(load(scratch, self.score_at(row, key)), key)
                place = bits(T.ramp(key - start, 1, LANES), _UNSIGNED)  # of keys before the first it wraps around
                score = bind(pick(place <= bits(keys, _UNSIGNED), score, f32(_LEAST)))
                store(scratch, self.score_at(row, key), score)
                store(greatest, 0, maximum(score, load(greatest, 0)))
            top = bind(_by_halves(greatest, maximum) * T.float32(_LOG2_E))
            below = bind(splat(bind(T.float32(-0.0) - top)))
            store(total, 0, f32(0.0))
            with loop(count) as i:
                key = bind((tiles[0] + i) * LANES)
                score = bind(load(scratch, self.score_at(row, key)))
                weight = exp2_16(fma(score, f32(_LOG2_E), below))
                weight = bind(pick(score > f32(_LEAST), weight, f32(0.0)))
                store(total, 0, load(total, 0) + weight)
                if self.shape.cache == "int8":
                    weight = weight * load(self.buffers["value_scale"], key)
                store(scratch, self.score_at(row, key), weight)
            store(self.rows["inverse"], row, T.float32(1.0) / _by_halves(total, lambda a, b: a + b), 1)

    def outputs(self, rows: int, start: Expr, last: Expr) -> None:
        """Emit the sums of values over all keys from the first to the last, times the inverse of the weights' sum."""
        units, tiles = _units(self.target, rows), self.padded // LANES
        with loop(tiles // units) as chunk:
            self.features(rows, (chunk * units, units), start, last)
        if tiles % units:
            self.features(rows, (tiles - tiles % units, tiles % units), start, last)

    def features(self, rows: int, part: tuple[Expr, int], start: Expr, last: Expr) -> None:
        """Emit the outputs of a part of the features: the first tile, and how many."""
        (first, tiles), scratch = part, self.buffers["scratch"]
        with local((rows * tiles * LANES, "float32"), (rows * tiles * LANES, "float32")) as (acc, sums):
            for i in range(rows * tiles):
                store(acc, i * LANES, f32(0.0))
            with loop(last - start + 1) as i:
                key = bind(start + i)
                values = [self.wide("values", key * self.padded + (first + tile) * LANES) for tile in range(tiles)]
                _advance(acc, values, [scratch[self.score_at(row, key)] for row in range(rows)])
            for row in range(rows):
                inverse = bind(splat(self.rows["inverse"][row]))
                for tile in range(tiles):
                    at = (row * tiles + tile) * LANES
                    store(sums, at, load(acc, at) * inverse)
            begin = bind(first * LANES)
            with loop(rows) as row, loop(T.min(tiles * LANES, self.width - begin)) as feature:
                place = self.rows["at"][row] + (begin + feature) * LANES
                store(self.buffers["out"], place, sums[row * (tiles * LANES) + feature], 1)


def _advance(acc: Buffer, vectors: list[Expr], numbers: list[Expr]) -> None:
    """Emit acc[row][unit] += number of the row times vector of the unit."""
    for row, number in enumerate(numbers):
        factor = bind(splat(number))
        for unit, vector in enumerate(vectors):
            at = (row * len(vectors) + unit) * LANES
            store(acc, at, fma(vector, factor, load(acc, at)))


def _by_halves(vector: Buffer, join: Callable[[Expr, Expr], Expr]) -> Expr:
    """Join the lanes of a vector: the upper half with the lower, until one is left. The vector is used up."""
    size = LANES // 2
    while size:
        store(vector, 0, join(load(vector, 0, size), load(vector, size, size)), size)
        size //= 2
    return bind(vector[0])


def cached_attention(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_cached_attention_f16(f32* q, f16* keys, f16* values, f32* out, f32* scratch, i32 queries, i32 position,
    i32 n, i32 window, i32 context), or stic_cached_attention_i8(f32* q, i8* keys, f32* key_scale, i8* values,
    f32* value_scale, f32* out, f32* scratch, ...): causal attention of one key head.

    q, out (queries, head_dim, 16), whose first n lanes are the tokens position .. position + n - 1; the scale of the
    scores is in q. The cache is the key head's, as stic_cache_store leaves it, and holds these tokens already. A token
    reads itself and what is before it, with a `window` other than 0 so many tokens in all. scratch (4, context), where
    context is a multiple of 16 above all positions. A part of the work is a call with fewer queries, or with q + t, out
    + t, position + t and fewer tokens.
    """
    scaled = shape.cache == "int8"
    floats = ("key_scale", "value_scale")
    pointers = [("q", "float32"), ("keys", shape.cache), ("key_scale", "float32"), ("values", shape.cache)]
    pointers += [("value_scale", "float32"), ("out", "float32"), ("scratch", "float32")]
    arguments = [argument for argument in pointers if scaled or argument[0] not in floats]
    arguments += [(name, "scalar") for name in ("queries", "position", "n", "window", "context")]

    def body(*values: Buffer) -> None:
        buffers = {name: value for (name, _), value in zip(arguments, values, strict=True)}
        total = bind(buffers["n"] * buffers["queries"])
        numbers = (ROWS, "int32")
        with (
            loop((total + ROWS - 1) // ROWS) as block,
            local(numbers, numbers, numbers, (ROWS, "float32")) as (at, start, last, inverse),
        ):
            rows = {"at": at, "start": start, "last": last, "inverse": inverse}
            first = bind(block * ROWS)
            _Block(target, shape, buffers, rows).emit(first, bind(T.min(ROWS, total - first)))

    return kernel(f"stic_cached_attention_{'i8' if scaled else 'f16'}", arguments, body)
