"""ONNX graphs of encoders, written node by node (opset 17, standard operators only).

Weights stay arrays beside the graph: whoever compiles reads them as they are, and only who writes a file serialises
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # the oldest with LayerNormalization


@dataclass(frozen=True, eq=False)
class ExportedGraph:
    """A graph and its weights, which may be views of a mapped file."""

    structure: onnx.ModelProto  # without initializers
    weights: dict[str, NDArray[Any]]  # in the order in which a file holds them

    def tensor(self, name: str) -> onnx.TensorProto:
        """Return one weight as an initializer."""
        return numpy_helper.from_array(np.asarray(self.weights[name], order="C"), name)

    def whole(self) -> onnx.ModelProto:
        """Return a model that holds its weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self.structure)
        model.graph.initializer.extend(self.tensor(name) for name in self.weights)
        return model


@dataclass
class GraphWriter:
    """Collects nodes and weights; every method returns the name of the value it makes."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    _constants: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        result = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [result], name=f"{op}_{len(self.nodes)}", **attributes))
        return result

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.asarray(value, dtype)
        key = (f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.raw_weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def raw_weight(self, name: str, array: NDArray[Any]) -> str:
        self.weights[name] = array
        return name

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Store a weight as it is; float16 ones are cast where they are used."""
        stored = self.raw_weight(name, array)
        return self.to_float(stored) if array.dtype == np.float16 else stored

    def to_float(self, value: str) -> str:
        return self.add("Cast", value, to=TensorProto.FLOAT)

    def rows(self, name: str, table: NDArray[Any], index: str) -> str:
        """Look rows up before casting, so that a float16 table stays float16 in memory."""
        gathered = self.add("Gather", self.raw_weight(name, table), index, axis=0)
        return self.to_float(gathered) if table.dtype == np.float16 else gathered

    def linear(self, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any]) -> str:
        """Return x @ weight.T + bias; `weight` is (out, in)."""
        product = self.add("MatMul", x, self.weight(f"{name}.weight", weight.T))
        return self.add("Add", product, self.weight(f"{name}.bias", bias))

    def norm(self, x: str, name: str, gamma: NDArray[Any], beta: NDArray[Any], epsilon: float) -> str:
        scale, shift = self.weight(f"{name}.weight", gamma), self.weight(f"{name}.bias", beta)
        return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=epsilon)

    def number(self, value: float) -> str:
        return self.constant(value, np.float32)

    def activation(self, x: str, kind: str) -> str:
        if kind == "gelu":
            inner = self.add("Erf", self.add("Div", x, self.number(np.sqrt(2.0))))
        elif kind == "gelu_tanh":
            cube = self.add("Mul", self.add("Mul", self.add("Mul", x, x), x), self.number(0.044715))
            inner = self.add("Tanh", self.add("Mul", self.add("Add", x, cube), self.number(np.sqrt(2.0 / np.pi))))
        else:
            return self.add({"relu": "Relu", "tanh": "Tanh"}[kind], x)
        return self.add("Mul", self.add("Mul", x, self.add("Add", inner, self.number(1.0))), self.number(0.5))

    def attention(self, query: str, key: str, value: str, bias: str, heads: int, size: int) -> str:
        """Return the merged heads' outputs, (batch, tokens, heads * size)."""
        split, merged = self.constant([0, 0, heads, size]), self.constant([0, 0, heads * size])
        q = self.add("Transpose", self.add("Reshape", query, split), perm=[0, 2, 1, 3])
        k = self.add("Transpose", self.add("Reshape", key, split), perm=[0, 2, 3, 1])
        v = self.add("Transpose", self.add("Reshape", value, split), perm=[0, 2, 1, 3])
        scores = self.add("Mul", self.add("MatMul", q, k), self.number(1.0 / np.sqrt(size)))
        weights = self.add("Softmax", self.add("Add", scores, bias), axis=-1)
        context = self.add("Transpose", self.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.add("Reshape", context, merged)

    def mask_bias(self, mask: str) -> str:
        """Return what is added to scores, (batch, 1, 1, tokens): 0, or the least float32 where the mask is 0."""
        kept = self.to_float(self.add("Unsqueeze", mask, self.constant([1, 2])))
        hidden = self.add("Sub", self.number(1.0), kept)
        return self.add("Mul", hidden, self.number(float(np.finfo(np.float32).min)))

    def positions(self, ids: str, padding: int | None) -> str:
        """Return row numbers of the position table: 0.., or RoBERTa's, from `padding` + 1 over tokens in use."""
        if padding is None:
            length = self.add("Gather", self.add("Shape", ids), self.constant(1), axis=0)
            return self.add("Range", self.constant(0), length, self.constant(1))
        real = self.add("Cast", self.add("Not", self.add("Equal", ids, self.constant(padding))), to=TensorProto.INT64)
        count = self.add("Mul", self.add("CumSum", real, self.constant(1)), real)
        return self.add("Add", count, self.constant(padding))

    def mean(self, x: str, mask: str) -> str:
        """Average features over the tokens that the mask keeps, as sentence-transformers does."""
        kept = self.to_float(self.add("Unsqueeze", mask, self.constant([-1])))
        total = self.add("ReduceSum", self.add("Mul", x, kept), self.constant([1]), keepdims=0)
        count = self.add("ReduceSum", kept, self.constant([1]), keepdims=0)
        return self.add("Div", total, self.add("Max", count, self.number(1e-9)))

    def unit(self, x: str) -> str:
        length = self.add("ReduceL2", x, axes=[-1], keepdims=1)
        return self.add("Div", x, self.add("Max", length, self.number(1e-12)))

    def first(self, x: str) -> str:
        return self.add("Gather", x, self.constant(0), axis=1)

    def model(self, inputs: tuple[str, ...], outputs: dict[str, tuple[str, tuple[str | int, ...]]]) -> onnx.ModelProto:
        """Finish with the weights inside; see `graph`."""
        return self.graph(inputs, outputs).whole()

    def graph(self, inputs: tuple[str, ...], outputs: dict[str, tuple[str, tuple[str | int, ...]]]) -> ExportedGraph:
        """Finish: `outputs` maps names to (value, shape)."""
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], name=f"output_{name}"))
        axes = ["batch", "sequence"]
        graph = helper.make_graph(
            self.nodes,
            "encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in inputs],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, (_, shape) in outputs.items()],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        structure = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="stic")
        return ExportedGraph(structure, self.weights)
