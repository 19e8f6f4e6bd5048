"""Packages of small decoders, written as the pipeline writes them, without measuring anything."""

from pathlib import Path

import numpy as np

from stic.compiler.decoder.model import Decoder
from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.materials import collect_decoder
from stic.compiler.decoding.quantize import QuantizedDecoder, quantize_decoder
from stic.compiler.importance.jobs import Workers
from stic.compiler.options import DecoderOptions
from stic.compiler.package.assembly import Planned, assemble_package
from stic.compiler.package.kernels import generate
from stic.compiler.package.writer import write_package
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.targets.target import load


def package_of(
    decoder: Decoder, bits: int, folder: Path, options: DecoderOptions, ids: np.ndarray, resident: bool = True,
    slices: int | None = None,
) -> Path:  # fmt: skip
    """Write a package of `decoder` with every block at `bits`; codes are fitted to `ids` (windows, tokens)."""
    cut, target = cut_decoder(decoder, slices), load("host")
    if bits > 8:
        quantized, full = QuantizedDecoder(cut, (), (), folder / "codes"), bits
    else:
        quantized, full = quantize_decoder(cut, (bits,), (bits,), ids, folder / "codes", Workers(1)), 0
    row_type = "tied" if decoder.architecture.tied else "float16" if full else "int8"
    materials = collect_decoder(quantized, full, options, 2, 2, row_type)
    layers = tuple(LayerPlan((bits,) * n, (bits * resident,) * n) for n in materials.store.slices)
    plan = Plan("test", layers, False, 1, True, Budget(), 0.0, Proof("heuristic", 0.0, None, 0.0))
    generate(materials.kernel_shape, target, folder / "kernels.so")
    write_package(assemble_package(materials, (Planned(plan),), target, folder / "kernels.so"), folder / "model.stic")
    return folder / "model.stic"
