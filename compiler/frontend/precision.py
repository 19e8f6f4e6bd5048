"""The float type that a graph computes in, and how far its constants may lie from what they stand for.

The frontend widens every file to float32 before it runs it. What the file rounded stays rounded: a square root of 2
written in float16 is 1.414, so a GELU made with it misses the exact one by more than float32 explains. Every tolerance
that such constants bear on is stated here, and follows the coarsest float type in which the graph computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto

_TYPES = ((TensorProto.BFLOAT16, 8), (TensorProto.FLOAT16, 11))  # coarsest first; bits of a whole mantissa
# Operators that pass floats on: weights stored in float16 and cast before use are computed with in float32.
_CARRIERS = {
    "Cast", "CastLike", "Constant", "ConstantOfShape", "Gather", "Identity", "Reshape", "Shape", "Size", "Slice",
    "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """A float type, by the bits of its mantissa."""

    bits: int = 24

    @property
    def rounding(self) -> float:
        """Return the largest relative error of a constant."""
        return 2.0**-self.bits

    @property
    def activation(self) -> float:
        """Return how far an activation may lie from the exact one on [-8, 8]."""
        return max(2e-5, 2 * self.rounding)

    @property
    def norm(self) -> float:
        """Return how far a layer norm may lie from the exact one, relative to its largest value."""
        return max(1e-4, 4 * self.rounding)

    @property
    def output(self) -> float:
        """Return how far the model's output may lie from the graph's, relative to the largest."""
        return max(1e-3, 16 * self.rounding)  # float32 sums in another order stay far below 1e-3


def precision_of(graph: GraphProto) -> Precision:
    """Return the coarsest precision in which any node of `graph`, whose functions are inlined, computes."""
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in graph.input if value.name not in kinds}
    coarsest = 24
    for node in graph.node:
        read = [kinds.get(name, 0) for name in node.input]
        kind, bits = next(((t, b) for t, b in _TYPES if t in read), (next(iter(read), 0), 24))
        if node.op_type not in _CARRIERS:
            coarsest = min(coarsest, bits)
        made = _made(node, read)
        kinds.update((name, kind if made is None else made) for name in node.output)
    return Precision(coarsest)


def _made(node: NodeProto, read: list[int]) -> int | None:
    """Return the type that a node makes whatever it reads; None if that is the coarsest of what it reads."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            return int(attribute.i)
        if node.op_type in ("Constant", "ConstantOfShape") and attribute.HasField("t"):
            return int(attribute.t.data_type)
    if node.op_type == "CastLike":
        return read[1]
    return TensorProto.INT64 if node.op_type in ("Shape", "Size") else None
