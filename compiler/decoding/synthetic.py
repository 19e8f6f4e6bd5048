"""A decoder of given sizes with random weights and codes, for measuring what those sizes cost on a device.

Time does not depend on the weights' values, so nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stic.compiler.decoder.model import Array, Decoder
from stic.compiler.decoding.cut import GROUP, Cut
from stic.compiler.quantization.quantize import MatrixLevel, Outliers
from stic.runtime.architecture import Architecture, Attention, Block, Tensor, Vocabulary, tensors
from stic.runtime.layout import Shape

ROWS = 256  # of the embedding, which is read by row
_PATTERN = 256  # rows of the head, after which they repeat
_NONE = Outliers(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float16))


class RandomWeights:
    """Weights of an architecture: norms that change nothing, no biases, and matrices of random numbers."""

    def __init__(self, architecture: Architecture) -> None:
        self._listed = {(tensor.block, tensor.role): tensor for tensor in tensors(architecture)}

    def read(self, block: int | None, role: str) -> Array | None:
        """See `stic.compiler.decoder.model.Weights`."""
        tensor = self._listed.get((block, role))
        if tensor is None or tensor.optional:
            return None
        if role in ("embedding", "head"):
            return self.rows(role, 0, tensor.shape[0])
        return np.ones(tensor.shape, np.float32) if role.endswith("_gamma") else _random(tensor, tensor.shape)

    def rows(self, role: str, first: int, count: int) -> Array:
        """See `stic.compiler.decoder.model.Weights`."""
        tensor = next(tensor for (_, name), tensor in self._listed.items() if name == role)
        pattern = _random(tensor, (_PATTERN, tensor.shape[1]))
        found: Array = pattern[np.arange(first, first + count) % _PATTERN]
        return found


def _random(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng((tensor.block or 0) + len(tensor.role))
    found: Array = rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
    return found


def first_layers(architecture: Architecture, count: int) -> Architecture:
    """The first `count` blocks of attention with the others among them, its own head, and an embedding of ROWS rows."""
    blocks: list[Block] = []
    for block in architecture.blocks[:-1]:
        count -= isinstance(block, Attention)
        if count < 0:
            break
        blocks.append(block)
    head: Vocabulary = replace(architecture.head, tied=False)
    return replace(architecture, vocabulary=ROWS, blocks=(*blocks, head), stops=(), bos=None)


@dataclass(frozen=True, eq=False)
class RandomDecoder:
    """Random codes for a cut decoder."""

    cut: Cut
    quantizer: str = "random"
    nested: bool = False

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.cut.decoder.name

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """How each block is cut."""
        return self.cut.shapes

    def level(self, block: int, index: int, name: str, bits: int) -> MatrixLevel:
        """One matrix of a slice at one bitwidth."""
        n, k = self.shapes[block].matrix(name)
        rng = np.random.default_rng((block, index, bits))
        table = np.linspace(-127, 127, 1 << bits).astype(np.int8)
        ratios = np.full((n, self.shapes[block].groups(name, GROUP)), 255, np.uint8)
        return MatrixLevel(rng.integers(0, 1 << bits, (n, k), np.uint8), table, _NONE, ratios)

    def weights(self, block: int, index: int) -> dict[str, Array]:
        """The matrices of a slice before they were quantised."""
        return next(matrices for n, matrices in enumerate(self.cut.slices(block)) if n == index)


def random_decoder(architecture: Architecture, name: str = "synthetic") -> Decoder:
    """A decoder without text."""
    return Decoder(name, architecture, RandomWeights(architecture))
