"""What is on offer by name or number, said once for the options and for the stages that they choose between.

Imports nothing of stic: options need not load a stage to name it, and a stage does not depend on other options.
"""

from __future__ import annotations

from typing import Literal, get_args

Quantizer = Literal["nested", "gobo"]
QUANTIZERS: tuple[Quantizer, ...] = get_args(Quantizer)
Method = Literal["curves", "sti"]  # of measuring importance
METHODS: tuple[Method, ...] = get_args(Method)
BITS = (2, 3, 4, 5, 6, 8)  # of a shard; 7 is stored on the way to 8, and buys little (docs/planner.md)
DECODER_BITS = (
    BITS  # of a decoder's: each has codes of its own, which take time to find; 5 is worth it (docs/decoders.md)
)
