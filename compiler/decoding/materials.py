"""What a decoder's package is made of before any decision, as `stic.compiler.package.assembly` has it for encoders."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from stic.compiler.decoder.model import Array, Decoder
from stic.compiler.decoding.cut import GROUP, Cut
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.decoding.trunk import build_decoder_trunk
from stic.compiler.memory.placement import DecoderSizes, Sizes
from stic.compiler.options import DecoderOptions
from stic.compiler.package.assembly import ROW_LANES, STACK_BYTES, Materials
from stic.compiler.package.contents import Contents, Quantized, model_table
from stic.compiler.package.trunk import Trunk, build_embeddings
from stic.compiler.quantization.grouped import row_scale
from stic.compiler.store import lay_out
from stic.compiler.text.packaged import text_to_json
from stic.runtime.architecture import to_json
from stic.runtime.format import CACHES, JOINED, NORMS
from stic.runtime.layout import row_stride
from stic.schedules.shape import DecoderShape


class CutDecoder(Quantized, Protocol):
    """A decoder's weights by block and slice, and how it was cut."""

    @property
    def cut(self) -> Cut:
        """The decoder and its shapes."""


def collect_decoder(
    quantized: CutDecoder, full_bits: int, options: DecoderOptions, threads: int, lanes: int, row_type: str
) -> Materials:
    """Lay out the store and build the trunk and the embedding rows, of one of ROW_TYPES, of a quantised decoder.

    There are no rows to build where they are tied.

    Raises InputError if it has too few positions or its rows cannot be of that type, UnsupportedModelError if its
    blocks differ in what kernels are compiled for.
    """
    cut, decoder = quantized.cut, quantized.cut.decoder
    architecture, context = decoder.architecture, options.context_of(decoder.architecture.context)
    store = lay_out(cut.shapes, None, False, full_bits, group=GROUP)
    trunk = build_decoder_trunk(cut, _Scales(cut), context)
    features = {rotary.features for rotary in architecture.rotaries}
    sizes = Sizes(
        shapes=cut.shapes,
        max_length=context,
        trunk_bytes=len(trunk.data),
        row_stride=row_stride(architecture.hidden, row_type, packed=True),
        head_width=0,
        output_floats=0,
        threads=threads,
        lanes=lanes,
        row_lanes=max(lanes, ROW_LANES),
        stack_bytes=STACK_BYTES,
        decoder=DecoderSizes(
            min(options.chunk, context), GROUP, options.cache, len(architecture.rotaries), max(features, default=0)
        ),
    )
    embeddings = b"" if row_type == "tied" else build_embeddings(_rows(decoder), row_type, packed=True)
    shape = DecoderShape.of(architecture, row_type, options.cache)
    return Materials(
        quantized, _contents(decoder, sizes, trunk, shape), store, trunk, embeddings, sizes, row_type, shape
    )


class _Scales:
    """Row scales of a block's matrices, which need no codes; those of one block are read at a time."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._block, self._found = -1, dict[str, Array]()

    def __call__(self, block: int, name: str) -> Array:
        """(slices, N), or (HP,) of a matrix whose columns are slices."""
        if block != self._block:
            self._block = block
            self._found = {matrix: row_scale(w) for matrix, w in stacks_of(self._cut, block).read().items()}
        if name in JOINED:
            return self._found[name]
        parts = [self._found[matrix] for matrix in stacks_of(self._cut, block).named(name)]
        return np.concatenate(parts).reshape(self._cut.shapes[block].slices, -1)


def _rows(decoder: Decoder) -> Array:
    """The embedding, (vocabulary, hidden)."""
    return decoder.weights.rows("embedding", 0, decoder.architecture.vocabulary)


def _contents(decoder: Decoder, sizes: Sizes, trunk: Trunk, shape: DecoderShape) -> Contents:
    """What a package says of a decoder."""
    architecture, d = decoder.architecture, sizes.decoder
    assert d is not None
    kinds = [norm.kind for block in architecture.blocks for norm in (block.norms.input, block.norms.post) if norm]
    values: dict[str, Any] = {
        "hidden": architecture.hidden,
        "vocabulary": architecture.vocabulary,
        "max_length": sizes.max_length,
        "chunk": d.chunk,
        "causal": 1,
        "output_features": architecture.head.rows,
        "norm": NORMS.index(kinds[0]) if kinds else 0,
        "cache": CACHES.index(d.cache),
        "rotaries": d.rotaries,
        "rotary_features": d.rotary_features,
        "embedding_multiplier": architecture.embedding.multiplier,
        **trunk.model,
    }
    described = {
        "name": decoder.name,
        "family": architecture.family,
        "activation": shape.activation,
        "epsilon": shape.epsilon,
        "elastic": False,
    }
    texts = {"tokenizer.json": decoder.text.tokenizer, "chat_template.jinja": decoder.text.template}
    files = {name: text.encode() if isinstance(text, str) else text for name, text in texts.items() if text is not None}
    said = {"architecture": to_json(architecture), "text": text_to_json(decoder.text)}
    return Contents(model_table(values), described, files, said)
