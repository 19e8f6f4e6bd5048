"""What the nested store takes on disk, against independent copies of every bitwidth as STI keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.evaluation.tasks import Prepared
from stic.compiler.store import lay_out
from stic.runtime.format import FULL, MATRICES

COPIES_BITS = 6  # most bits of a quantized copy in STI (arXiv 2207.05022, section 4): 2, 3, 4, 5, 6, and float32
COPIES_FULL_BITS = 32


def stored(prepared: Prepared) -> dict[str, Any]:
    """Bytes of shards.bin with all nested levels up to 8 bits, and of six independent copies with the same outliers."""
    quantized, geometry = prepared.materials.encoder, prepared.materials.encoder.sharded.geometry
    outliers = np.array(
        [
            [
                [len(quantized.matrix(layer, s, name).outliers) for name in MATRICES["layer"]]
                for s in range(geometry.slices)
            ]
            for layer in range(geometry.layers)
        ]
    )
    nested = lay_out(geometry.shapes, outliers, True, 0).total_bytes
    copies = lay_out(geometry.shapes, outliers, False, COPIES_FULL_BITS, COPIES_BITS)
    return {
        "nested_bytes": nested,
        "six_copies_bytes": copies.total_bytes,
        "of_them_float32_bytes": int(copies.bytes[:, FULL].sum()),
        "ratio": nested / copies.total_bytes,
    }
