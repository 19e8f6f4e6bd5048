"""Quantise a decoder block by block, and keep what was found in files: few blocks are ever in memory at once.

Blocks are quantised in their order, on the stream that the quantised matrices before them make, with activations in
groups as the engine has them (GPTQ, arXiv 2210.17323, quantises so). The model's own stream runs beside it, so that
each matrix makes up for what those before it have lost (`stic.compiler.quantization.targets`). Every bitwidth has a
stream of its own.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stic.compiler.decoder.forward import Run, embed, normalise, read_block, run_block
from stic.compiler.decoder.model import Array
from stic.compiler.decoding.apart import MatrixJob, quantized_apart
from stic.compiler.decoding.cut import Cut
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.importance.jobs import Workers
from stic.compiler.quantization.grouped import ROUNDS, GroupedMatrix, quantize_grouped
from stic.compiler.quantization.quantize import MatrixLevel, Outliers
from stic.compiler.quantization.targets import target
from stic.runtime.errors import InputError
from stic.runtime.files import write_bytes
from stic.runtime.layout import Shape

Ids = NDArray[np.int64]
Tick = Callable[[int, int], None]
_NONE = Outliers(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float16))


@dataclass(frozen=True, eq=False)
class QuantizedDecoder:
    """A cut decoder whose blocks lie quantised in files, `<bits>/<block>.npz` below a folder."""

    cut: Cut
    bits: tuple[int, ...]
    head_bits: tuple[int, ...]
    folder: Path
    draft: bool = False  # of several bitwidths, to choose among; `refine` quantises what a plan has
    quantizer: str = "grouped"
    nested: bool = False

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.cut.decoder.name

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """How each block is cut."""
        return self.cut.shapes

    def path(self, block: int, bits: int) -> Path:
        """Where a block's codes are."""
        return self.folder / str(bits) / f"{block}.npz"

    def missing(self) -> set[int]:
        """Blocks that have no file at one of the bitwidths."""
        last = len(self.shapes) - 1
        offered = {number: self.head_bits if number == last else self.bits for number in range(last + 1)}
        return {number for number, some in offered.items() if not all(self.path(number, b).is_file() for b in some)}

    def level(self, block: int, index: int, name: str, bits: int) -> MatrixLevel:
        """Return one matrix of slice `index` at one bitwidth."""
        part = stacks_of(self.cut, block).part(_loaded(self.folder, block, bits), name, index)
        return MatrixLevel(part.codes[bits], part.tables[bits], _NONE, part.ratios[bits])

    def weights(self, block: int, index: int) -> dict[str, Array]:
        """The matrices of a slice before they were quantised, (N, K) float32, padded with zeros."""
        return next(matrices for n, matrices in enumerate(self.cut.slices(block)) if n == index)

    def head(self, bits: int) -> list[Array]:
        """The vocabulary's weights of each slice, (rows, hidden), as the engine computes with them at `bits`."""
        last = len(self.shapes) - 1
        stacks, found = stacks_of(self.cut, last), _loaded(self.folder, last, bits)
        columns = stacks.columns["head"]
        parts = []
        for index, name in enumerate(stacks.named("head")):
            rows, _ = self.cut.used(last, "head", index)
            parts.append(found[name].dequantize(bits)[np.ix_(rows, columns)])
        return parts

    def dequantized(self, block: int, bits: int) -> dict[str, Array]:
        """A block's weights by role, as the engine computes with them at `bits`; 16: as float16 has them."""
        stacks = stacks_of(self.cut, block)
        if bits == 16:
            whole = {name: m.astype(np.float16).astype(np.float32) for name, m in stacks.read().items()}
        else:
            whole = {name: m.dequantize(bits) for name, m in _loaded(self.folder, block, bits).items()}
        return stacks.roles(whole)


def quantize_decoder(
    cut: Cut, bits: Sequence[int], head_bits: Sequence[int], ids: Ids, folder: Path, workers: Workers,
    progress: Tick = lambda done, total: None,
) -> QuantizedDecoder:  # fmt: skip
    """Quantise every block at each of `bits`, the vocabulary at each of `head_bits`, into files of `folder`.

    `ids` (windows, tokens) are calibration tokens. One bitwidth is quantised on the stream that it makes; several are
    drafts, for a planner to choose among. Blocks whose files are there are not quantised again. `progress` is told
    matrices done and their total. Raises InputError for weights that are not finite.
    """
    quantized = QuantizedDecoder(cut, tuple(bits), tuple(head_bits), folder, draft=len(bits) > 1)
    last, missing = len(cut.shapes) - 1, quantized.missing()
    layers = sorted(number for number in missing if number < last)
    total = sum(len(stacks_of(cut, number).listed) for number in missing)
    done = 0

    def tick(matrices: int = 1) -> None:
        nonlocal done
        done += matrices
        progress(done, total)

    if layers and not quantized.draft:
        with threadpool_limits(workers.jobs or os.cpu_count()):
            _quantize_level(quantized, ids, tick)
        layers = []
    offered = {number: tuple(head_bits if number == last else bits) for number in [*layers, *({last} & missing)]}
    rounds = 0 if quantized.draft else ROUNDS
    keep(quantized, quantized_apart(jobs_apart(quantized, offered, ids, rounds), workers, tick))
    return quantized


def _quantize_level(quantized: QuantizedDecoder, ids: Ids, tick: Callable[[int], None]) -> None:
    """One bitwidth of every block but the vocabulary."""
    cut, (bits,) = quantized.cut, quantized.bits
    architecture = cut.decoder.architecture
    run, x = Run(architecture, (ids.shape[0], ids.shape[1])), embed(cut.decoder, ids)
    exact_run, exact = Run(architecture, run.shape), x
    for number in range(len(cut.shapes) - 1):
        path = quantized.path(number, bits)
        known = read_codes(path, bits) if path.is_file() else None
        block = BlockQuantizer(cut, number, bits, known)
        exact = run_block(exact_run, number, block.weights, exact, block.remember)
        x = run_block(run, number, block.weights, x, block)
        if known is None:
            write_codes(path, block.found, bits)
            tick(len(block.found))


def jobs_apart(
    quantized: QuantizedDecoder, offered: Mapping[int, tuple[int, ...]], ids: Ids, rounds: int = ROUNDS
) -> Iterator[MatrixJob]:
    """The matrices of blocks at the bits `offered`, blocks ascending, each for what it reads in the exact model."""
    if not offered:
        return
    cut, last = quantized.cut, len(quantized.shapes) - 1
    architecture = cut.decoder.architecture
    run = Run(architecture, (ids.shape[0], ids.shape[1]))
    x = embed(cut.decoder, ids)
    for number in range(max(offered) + 1):
        weights, read = read_block(cut.decoder, number), dict[str, Array]()

        def see(_: int, name: str, rows: Array, read: dict[str, Array] = read) -> Array:
            read[name] = rows
            return rows

        if number < last:
            x = run_block(run, number, weights, x, see if number in offered else None)
        else:
            see(last, "head", normalise(x.reshape(-1, x.shape[-1]), architecture.head.norms.input, weights, "input"))
        if number not in offered:
            continue
        stacks = stacks_of(cut, number)
        matrices = stacks.read()
        for name in quantized.shapes[number].matrices:
            rows, groups = stacks.activations(read.pop(name), name), stacks.groups(name)
            moments = stacks.moments(rows, rows, name)
            for matrix in stacks.named(name):
                yield MatrixJob(number, matrix, matrices.pop(matrix), moments, groups, offered[number], rounds)


def keep(quantized: QuantizedDecoder, found: Iterable[tuple[MatrixJob, GroupedMatrix]]) -> None:
    """Write each block, once its matrices are there."""
    for number, parts in groupby(found, key=lambda one: one[0].block):
        matrices = {job.name: matrix for job, matrix in parts}
        for bits in next(iter(matrices.values())).codes:
            write_codes(quantized.path(number, bits), matrices, bits)


class BlockQuantizer:
    """A block whose matrices are quantised one after another, by what each reads; a tap of the forward pass."""

    def __init__(self, cut: Cut, number: int, bits: int, known: dict[str, GroupedMatrix] | None) -> None:
        """`known` is what was quantised before; the block then only computes."""
        self.number, self.bits, self.stacks = number, bits, stacks_of(cut, number)
        self.weights = read_block(cut.decoder, number)  # by role; matrices are replaced as they are quantised
        self.found = known or {}
        self._model, self._pending = cut.decoder.name, {} if known else self.stacks.read()
        self._exact: dict[str, Array] = {}  # what the model's own matrices read

    def remember(self, _: int, name: str, rows: Array) -> Array:
        """Tap of the model's own stream, which goes first: what is to be made up for."""
        if self._pending:
            self._exact[name] = rows
        return rows

    def __call__(self, _: int, name: str, rows: Array) -> Array:
        """Quantise the matrices of a name just before they read `rows`; return what the engine's would read of them."""
        rows = self.stacks.activations(rows, name)
        if self._pending:
            moments, groups = self.stacks.moments(rows, rows, name), self.stacks.groups(name)
            exact = self._exact.pop(name, None)  # none of the head, which is quantised for what it reads alone
            difference = np.zeros_like(moments) if exact is None else self.stacks.moments(exact - rows, rows, name)
            for matrix in self.stacks.named(name):
                self.found[matrix] = self._quantized(self._pending.pop(matrix), moments, difference, groups)
        if name != "head":
            self.weights.update(self.stacks.roles({name: self.found[name].dequantize(self.bits)}))
        return rows

    def _quantized(self, weight: Array, moments: Array, difference: Array, groups: NDArray[np.intp]) -> GroupedMatrix:
        sought = target(weight, moments, difference) if np.isfinite(moments).all() else None
        try:
            return quantize_grouped(weight, moments, (self.bits,), groups, sought)
        except InputError as error:
            raise InputError(f"{self._model}, block {self.number}: {error}") from error


def write_codes(path: Path, found: dict[str, GroupedMatrix], bits: int) -> None:
    """Keep a block's matrices: codes as bits, most significant first."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, matrix in found.items():
        planes = [(matrix.codes[bits] >> np.uint8(bits - 1 - p)) & np.uint8(1) for p in range(bits)]
        arrays[f"{name}.planes"] = np.stack([np.packbits(plane) for plane in planes])
        arrays[f"{name}.shape"] = np.array(matrix.codes[bits].shape)
        arrays[f"{name}.table"], arrays[f"{name}.ratios"] = matrix.tables[bits], matrix.ratios[bits]
        arrays[f"{name}.scale"], arrays[f"{name}.groups"] = matrix.scale, matrix.groups
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its other parameter has a name that none of these has
    write_bytes(path, buffer.getvalue())


def read_codes(path: Path, bits: int) -> dict[str, GroupedMatrix] | None:
    """Inverse of `write_codes`; None for a file that is not there, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = {}
        for name in {key.partition(".")[0] for key in arrays}:
            rows, columns = (int(n) for n in arrays[f"{name}.shape"])
            codes = np.zeros(rows * columns, np.uint8)
            for plane in arrays[f"{name}.planes"]:
                codes = (codes << np.uint8(1)) | np.unpackbits(plane, count=rows * columns)
            table, ratios, scale, groups = (arrays[f"{name}.{part}"] for part in ("table", "ratios", "scale", "groups"))
            whole = codes.reshape(rows, columns)
            found[name] = GroupedMatrix({bits: whole}, {bits: table}, {bits: ratios}, scale, groups)
        return found
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


@lru_cache(maxsize=2)
def _loaded(folder: Path, block: int, bits: int) -> dict[str, GroupedMatrix]:
    """A block's matrices at one bitwidth. A damaged file is taken away, so that it is made anew."""
    path = folder / str(bits) / f"{block}.npz"
    found = read_codes(path, bits)
    if found is None:
        path.unlink(missing_ok=True)
        raise InputError(f"{path} is damaged or gone: run the command again, which makes it anew")
    return found
