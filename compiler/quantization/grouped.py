"""Quantise a matrix in groups of columns: weight[n, k] = scale[n] * ratio[n, group of k] * table[code[n, k]].

This is what decoders store (docs/decoders.md, "Groups"). Each bitwidth has codes, a table and ratios of its own; the
row scale is one for all. For each bitwidth alone the mean square error of the output is lowered, error^T E[x x^T] error
summed over rows:

1. units = scale * ratio start from the largest weight of each group; table (k-means) and units (least squares) take
   turns, a column weighing as the root mean square of its input;
2. codes are chosen under the whole of them (`feedback`);
3. units are fitted again, all groups of a row together, and codes follow: a few rounds.

docs/quantizers.md tells what else was tried, and what each step is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array
from stic.compiler.quantization.codebook import Samples
from stic.compiler.quantization.feedback import Codes, Spread, descend, feed_forward, nearest
from stic.runtime.errors import InputError

INT8_MAX, UINT8_MAX = 127, 255  # of table entries, of ratios
MOMENT_FLOOR = 0.01  # added to every input's mean square, as a share of their mean
ALTERNATIONS = 2  # of table and units at the start
K_MEANS = 50  # rounds of a table's fit
ROUNDS, SWEEPS = 2, 2  # of units and codes; over the columns in each
_UNIFORM = 8  # bits whose table is every int8: nothing is gained by choosing among them
_SAMPLES = 1 << 17  # weights that a table is fitted to
_LEAST, _MOST = 0.3, 3.0  # by how much a refitted unit may differ from the one before
_RIDGE = 1e-4  # on the normal equations of a row's units, as a share of their mean diagonal


@dataclass(frozen=True, eq=False)
class GroupedMatrix:
    """One (N, K) matrix at several bitwidths, which share nothing but the row scale."""

    codes: Mapping[int, Codes]  # bits -> (N, K), below 2^bits
    tables: Mapping[int, NDArray[np.int8]]  # bits -> (2^bits,) ascending, at most 127 in magnitude
    ratios: Mapping[int, NDArray[np.uint8]]  # bits -> (N, G); 0 where all weights of the group are 0
    scale: Array  # (N,); 0 in rows of zeros
    groups: NDArray[np.intp]  # (K,) ascending: the group of each column

    def dequantize(self, bits: int) -> Array:
        """Return the (N, K) float32 weights that the engine computes with. Raises InputError for other bits."""
        if bits not in self.codes:
            raise InputError(f"the matrix has no {bits} bits: try one of {', '.join(map(str, self.codes))}")
        units = self.scale[:, None] * self.ratios[bits].astype(np.float32)
        found: Array = units[:, self.groups] * self.tables[bits].astype(np.float32)[self.codes[bits]]
        return found

    def part(self, rows: slice, columns: slice) -> GroupedMatrix:
        """Return some rows and columns, as a slice of a block has them; columns start and end where groups do."""
        held = self.groups[columns]
        groups = slice(int(held[0]), int(held[-1]) + 1)
        if np.isin(np.delete(self.groups, columns), held).any():
            raise ValueError("a part takes whole groups of columns")
        return GroupedMatrix(
            {bits: codes[rows, columns] for bits, codes in self.codes.items()},
            self.tables,
            {bits: ratios[rows, groups] for bits, ratios in self.ratios.items()},
            self.scale[rows],
            held - held[0],
        )


def column_groups(widths: Sequence[int], group: int) -> NDArray[np.intp]:
    """The group of each column of slices that stand side by side, `widths` columns each.

    Groups are counted from each slice's first column; the last of a slice may be shorter.
    """
    sizes = [min(group, width - start) for width in widths for start in range(0, width, group)]
    return np.repeat(np.arange(len(sizes)), sizes)


def quantize_grouped(
    weight: Array, moments: Array, bits: Sequence[int], groups: NDArray[np.intp], target: Array | None = None,
    rounds: int = ROUNDS,
) -> GroupedMatrix:  # fmt: skip
    """Quantise `weight` (N, K) at each of `bits`, 2 to 8, in so many rounds of step 3.

    `moments` (K, K) are the second moments of its inputs, as they were measured; `groups` (K,) the group of each
    column, ascending from 0. `target` (N, K) is what codes and ratios shall come near instead of `weight`, as
    `targets.target` has it; the row scale is the weight's. Needs about ten times the weights' bytes while it runs.
    Raises InputError for numbers that are not finite.
    """
    sought = weight if target is None else target
    if not np.isfinite(weight).all():
        raise InputError("a matrix holds NaN or infinite weights: check the model's files")
    if not (np.isfinite(moments).all() and np.isfinite(sought).all()):
        raise InputError("a matrix reads NaN or infinite inputs: check the model's files")
    turned = np.ascontiguousarray(sought.T, np.float32)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    peaks = np.maximum.reduceat(np.abs(turned), starts, axis=0)  # (G, N)
    scale = row_scale(weight)
    damped = _damped(moments)
    along = Spread.of(damped)
    levels = {b: _Level(turned, damped, along, scale, peaks, starts, b).fitted(rounds) for b in bits}
    return GroupedMatrix(
        {b: np.ascontiguousarray(codes.T) for b, (codes, _, _) in levels.items()},
        {b: table.astype(np.int8) for b, (_, table, _) in levels.items()},
        {b: np.ascontiguousarray(ratios.T.astype(np.uint8)) for b, (_, _, ratios) in levels.items()},
        scale,
        groups,
    )


def row_scale(weight: Array) -> Array:
    """The scale of each row of (N, K), which does not depend on bits: its largest weight has the largest steps."""
    found: Array = (np.abs(weight).max(axis=1) / np.float32(INT8_MAX * UINT8_MAX)).astype(np.float32)
    return found


def _damped(moments: Array) -> Array:
    """Moments in units of their mean, with a floor for inputs that were hardly seen; equal ones if none were."""
    mean = float(np.diag(moments).mean())
    if not mean > 0:
        return np.eye(len(moments), dtype=np.float32)
    return (moments / mean + MOMENT_FLOOR * np.eye(len(moments))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Level:
    """One bitwidth of a matrix that is turned, (K, N). Units are scale * ratio, (G, N)."""

    weights: Array
    moments: Array
    along: Spread  # of the moments
    scale: Array  # (N,)
    peaks: Array  # (G, N): the largest weight of each group
    starts: NDArray[np.intp]  # (G,): the first column of each group
    bits: int

    def fitted(self, rounds: int) -> tuple[Codes, Array, Array]:
        """Return codes (K, N), the table (2^bits) of whole numbers, and ratios (G, N), whole numbers too."""
        table, units = self._start()
        ratios = self._ratios(units)
        codes = feed_forward(self.weights, self._spread(ratios), table, self.along)
        reached = self.moments @ self.weights if rounds else self.weights
        for _ in range(rounds):
            ratios = self._ratios(self._refitted(codes, table, ratios, reached))
            codes = descend(self.weights, self._spread(ratios), table, self.moments, codes, SWEEPS)
        return codes, table, np.where(self.peaks > 0, ratios, 0)

    def _start(self) -> tuple[Array, Array]:
        """Fit table and units without regard to correlations; the table's largest magnitude becomes 127.

        A column weighs as its input's root mean square. Its mean square would be right if nothing made up for errors
        later, and lets a few columns of large inputs have the table for themselves.
        """
        if self.bits == _UNIFORM:
            table = np.maximum(np.arange(-INT8_MAX - 1, INT8_MAX + 1), -INT8_MAX).astype(np.float32)
            return table, self.peaks / np.float32(INT8_MAX)
        units = np.where(self.peaks > 0, self.peaks, np.float32(1))
        inputs = np.sqrt(np.diag(self.moments))[:, None]
        for turn in range(ALTERNATIONS + 1):
            wide = self._widened(units)
            scaled = self.weights / wide
            table = _table(scaled, inputs * np.square(wide), self.bits)
            if turn == ALTERNATIONS:
                break
            values = table[nearest(scaled, table)]
            top = np.add.reduceat(inputs * self.weights * values, self.starts, axis=0)
            bottom = np.add.reduceat(inputs * np.square(values), self.starts, axis=0)
            units = np.where((top > 0) & (bottom > 0), top / np.where(bottom > 0, bottom, 1), units)
        largest = max(float(np.abs(table).max()), 1e-30)
        whole = np.rint(table * (INT8_MAX / largest)).astype(np.float32)
        return whole, units * np.float32(largest / INT8_MAX)

    def _refitted(self, codes: Codes, table: Array, ratios: Array, reached: Array) -> Array:
        """Given codes, the units of least error: for each row a linear system over its groups.

        `reached` is moments @ weights.
        """
        values = table[codes]
        right = np.add.reduceat(values * reached, self.starts, axis=0)  # (G, N)
        count = len(self.starts)
        system = np.empty((count, count, values.shape[1]), np.float32)
        for group, (start, end) in enumerate(zip(self.starts, [*self.starts[1:], len(values)], strict=True)):
            system[group] = np.add.reduceat(values * (self.moments[:, start:end] @ values[start:end]), self.starts, 0)
        rows = system.transpose(2, 0, 1).astype(np.float64)
        mean = np.einsum("ngg->n", rows) / count
        rows += (np.maximum(_RIDGE * mean, 1e-30)[:, None, None]) * np.eye(count)
        found = np.linalg.solve(rows, right.T[:, :, None].astype(np.float64))[:, :, 0].T
        before = self.scale * ratios
        return np.asarray(np.clip(found, _LEAST * before, _MOST * before), np.float32)

    def _ratios(self, units: Array) -> Array:
        """Units in steps of the row scale: whole numbers from 1 to 255."""
        steps = units / np.where(self.scale > 0, self.scale, np.float32(1))
        found: Array = np.clip(np.rint(steps), 1, UINT8_MAX).astype(np.float32)
        return found

    def _spread(self, ratios: Array) -> Array:
        """Units by column, (K, N); 1 where a row is 0 throughout, so that nothing is divided by 0."""
        return self._widened(np.where(self.scale > 0, self.scale, np.float32(1)) * ratios)

    def _widened(self, by_group: Array) -> Array:
        sizes = np.diff(self.starts, append=len(self.weights))
        found: Array = np.repeat(by_group, sizes, axis=0)
        return found


def _table(values: Array, weights: Array, bits: int) -> Array:
    """The 2^bits entries of least weighted squared error, by k-means on evenly drawn samples; ascending.

    They start half-way between quantiles, which crowd where the large inputs' weights are, and even steps.
    """
    step = max(1, values.size // _SAMPLES) | 1  # odd, so that it does not fall on the same rows again and again
    samples = Samples(values.ravel()[::step], weights.ravel()[::step])
    even = np.linspace(samples.values[0], samples.values[-1], 1 << bits)
    entries = (samples.quantiles(2 << bits)[::2] + even) / 2
    thresholds = samples.k_means((entries[1:] + entries[:-1]) / 2, K_MEANS)
    return samples.means(thresholds).astype(np.float32)
