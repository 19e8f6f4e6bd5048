"""Small random decoders as onnxruntime-genai's builder writes them (builders/base.py of onnxruntime-genai 0.18).

Written node by node, so that the package needs no place in the environment: com.microsoft's GroupQueryAttention with
packed or separate queries, keys and values, RotaryEmbedding outside of it, skip norms whose output 3 is the residual
stream, MatMulNBits and GatherBlockQuantized.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, HEADS, KEYS, SIZE, NEURONS, VOCABULARY, CONTEXT, LAYERS = 64, 4, 2, 32, 48, 96, 64, 2


@dataclass
class BuilderGraph:
    """A graph being written, with options as the builder has them."""

    packed: bool = True
    rotary_inside: bool = True
    interleaved: bool = False
    pairs: int = SIZE // 2
    norm: str = ""  # of queries and keys: "", "outside" or "inside" of GroupQueryAttention
    window: int = -1
    softcap: float = 0.0
    scale: float = SIZE**-0.5
    bits: int = 0
    zeros: bool = False
    quantised_embedding: bool = False
    kind: int = TensorProto.FLOAT
    long: int = 0  # tokens above which other rotary tables hold
    multiplier: float = 1.0
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    random: Any = field(default_factory=lambda: np.random.default_rng(5))

    def add(self, op: str, inputs: list[str], name: str, outputs: int = 1, domain: str = "", **options: Any) -> str:
        """Append a node; return its first output."""
        results = [f"{name}/output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, results, name, domain=domain, **options))
        return results[0]

    def weight(self, name: str, array: np.ndarray) -> str:
        kind = array.dtype if array.dtype.kind in "iu" else helper.tensor_dtype_to_np_dtype(self.kind)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array, kind), name))
        return name

    def normal(self, *shape: int, mean: float = 0.0) -> np.ndarray:
        return self.random.normal(mean, 0.2, shape).astype(np.float32)

    def product(self, source: str, name: str, rows: int, columns: int, bias: bool = False) -> str:
        """A linear map, in blocks of 32 columns where weights have few bits."""
        if not self.bits:
            made = self.add("MatMul", [source, self.weight(f"{name}.weight", self.normal(columns, rows))], name)
        else:
            blocks = -(-columns // 32)
            packed = self.random.integers(0, 256, (rows, blocks, 32 * self.bits // 8), dtype=np.uint8)
            scales = (0.32 + 0.32 * self.random.random((rows, blocks))) * 2.0**-self.bits
            inputs = [self.weight(f"{name}.codes", packed), self.weight(f"{name}.scales", scales)]
            if self.zeros:
                bytes_a_row = -(-blocks * self.bits // 8)
                zeros = self.random.integers(0, 256, (rows, bytes_a_row), dtype=np.uint8)
                inputs.append(self.weight(f"{name}.zeros", zeros))
            made = self.add(
                "MatMulNBits", [source, *inputs], name, domain="com.microsoft", K=columns, N=rows, bits=self.bits,
                block_size=32, accuracy_level=4,
            )  # fmt: skip
        if bias:
            made = self.add("Add", [made, self.weight(f"{name}.bias", self.normal(rows))], f"{name}/Add")
        return made

    def skip_norm(self, stream: str, added: str, name: str) -> tuple[str, str]:
        """Add to the stream and normalise; return the norm and the new stream."""
        gamma = self.weight(f"{name}.weight", self.normal(HIDDEN, mean=1.0))
        op = "SkipSimplifiedLayerNormalization"
        made = [f"{name}/output_0", "", "", f"{name}/output_3"]
        self.nodes.append(
            helper.make_node(op, [stream, added, gamma], made, name, domain="com.microsoft", epsilon=1e-6)
        )
        return made[0], made[3]

    def head_norm(self, source: str, name: str, heads: int) -> str:
        """A norm of each head, between two reshapes."""
        apart = self.add(
            "Reshape", [source, self.weight(f"{name}.apart", np.array([0, -1, SIZE]))], f"{name}/Reshape_1"
        )
        gamma = self.weight(f"{name}.weight", self.normal(SIZE, mean=1.0))
        normed = self.add("SimplifiedLayerNormalization", [apart, gamma], name, epsilon=1e-6, axis=-1, stash_type=1)
        shape = self.weight(f"{name}.merged", np.array([0, -1, heads * SIZE]))
        return self.add("Reshape", [normed, shape], f"{name}/Reshape_2")

    def tables(self) -> list[str]:
        """Cosines and sines, in an If where long texts have others."""
        frequencies = 10000.0 ** -(np.arange(self.pairs) / self.pairs)
        angles = np.multiply.outer(np.arange(CONTEXT), frequencies)
        names = [("cos_cache", np.cos), ("sin_cache", np.sin)]
        if not self.long:
            return [self.weight(name, f(angles)) for name, f in names]
        graphs = []
        for part, factor, magnitude in (("large", 0.3, 1.25), ("small", 0.9, 1.0)):
            made = [numpy_helper.from_array((magnitude * f(angles * factor)).astype(np.float32)) for _, f in names]
            nodes = [
                helper.make_node("Constant", [], [f"{name}_{part}"], value=table)
                for (name, _), table in zip(names, made, strict=True)
            ]
            outs = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, [CONTEXT, self.pairs]) for n in nodes]
            graphs.append(helper.make_graph(nodes, part, [], outs))
        limit = self.weight("limit", np.array(self.long, np.int32))
        greater = self.add("Greater", ["total", limit], "/model/rope_caches_subgraph/Greater")
        self.nodes.append(
            helper.make_node("If", [greater], [n for n, _ in names], "If", then_branch=graphs[0], else_branch=graphs[1])
        )
        return [name for name, _ in names]

    def attention(self, source: str, layer: int, tables: list[str]) -> str:
        name, wide, narrow = f"/model/layers.{layer}/attn", HEADS * SIZE, KEYS * SIZE
        if self.packed:
            qkv = [self.product(source, f"{name}/qkv_proj/MatMul", wide + 2 * narrow, HIDDEN), "", ""]
        else:
            shapes = zip("qkv", (wide, narrow, narrow), strict=True)
            qkv = [self.product(source, f"{name}/{p}_proj/MatMul", rows, HIDDEN, bias=True) for p, rows in shapes]
        if self.norm == "outside":
            qkv[:2] = [self.head_norm(qkv[i], f"{name}/{p}_norm", n) for i, p, n in ((0, "q", HEADS), (1, "k", KEYS))]
        partly = int(self.pairs < SIZE // 2)
        turned = {"interleaved": int(self.interleaved), "rotary_embedding_dim": 2 * self.pairs * partly}
        if not self.rotary_inside:
            for at, part, heads in ((0, "q", HEADS), (1, "k", KEYS)):
                qkv[at] = self.add(
                    "RotaryEmbedding", [qkv[at], "position_ids", *tables], f"{name}/{part}_rotary/RotaryEmbedding",
                    domain="com.microsoft", num_heads=heads * partly, **turned,
                )  # fmt: skip
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        inputs = [*qkv, *past, "seqlens", "total", *(tables if self.rotary_inside else ["", ""]), "", "", ""]
        options: dict[str, Any] = {}
        if self.norm == "inside":
            vectors = [self.weight(f"{name}.{p}_norm", self.normal(SIZE, mean=1.0)) for p in "qk"]
            inputs += ["", "", *vectors]
            options["qk_norm_epsilon"] = 1e-6
        if self.window > 0:
            options["sliding_window_cache"] = 1
        made = [f"{name}/GroupQueryAttention/output_0", f"present.{layer}.key", f"present.{layer}.value"]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention", inputs, made, f"{name}/GroupQueryAttention", domain="com.microsoft",
                num_heads=HEADS, kv_num_heads=KEYS, scale=self.scale, local_window_size=self.window,
                softcap=self.softcap, do_rotary=int(self.rotary_inside), rotary_interleaved=int(self.interleaved),
                **options,
            )
        )  # fmt: skip
        return self.product(made[0], f"{name}/o_proj/MatMul", HIDDEN, wide)

    def feed_forward(self, source: str, layer: int) -> str:
        name = f"/model/layers.{layer}/mlp"
        gate, up = (self.product(source, f"{name}/{part}_proj/MatMul", NEURONS, HIDDEN) for part in ("gate", "up"))
        sigmoid = self.add("Sigmoid", [gate], f"{name}/act_fn/Sigmoid")
        silu = self.add("Mul", [gate, sigmoid], f"{name}/act_fn/Mul")
        return self.product(self.add("Mul", [silu, up], f"{name}/Mul"), f"{name}/down_proj/MatMul", HIDDEN, NEURONS)

    def embedding(self) -> str:
        if not self.quantised_embedding:
            table = self.weight("model.embed_tokens.weight", self.normal(VOCABULARY, HIDDEN))
            rows = self.add("Gather", [table, "input_ids"], "/model/embed_tokens/Gather")
        else:
            packed = self.random.integers(0, 256, (VOCABULARY, HIDDEN // 2), dtype=np.uint8)
            scales = 0.02 + 0.02 * self.random.random((VOCABULARY, HIDDEN // 32))
            inputs = [self.weight("embed.codes", packed), "input_ids", self.weight("embed.scales", scales)]
            rows = self.add(
                "GatherBlockQuantized", inputs, "/model/embed_tokens/GatherBlockQuantized", domain="com.microsoft",
                bits=4, block_size=32, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
        if self.multiplier == 1.0:
            return rows
        return self.add("Mul", [rows, self.weight("multiplier", np.float32([self.multiplier]))], "/model/embed/Mul")

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        one, at = self.weight("one", np.array([1])), self.weight("at", np.array(1))
        kept = self.add("ReduceSum", ["attention_mask", one], "/mask/ReduceSum", keepdims=0)
        self.add("Sub", [kept, one], "/mask/Sub")
        self.nodes.append(helper.make_node("Cast", ["/mask/Sub/output_0"], ["seqlens"], "/mask/Cast", to=6))
        shape = self.add("Shape", ["attention_mask"], "/mask/Shape")
        total = self.add("Gather", [shape, at], "/mask/Gather", axis=0)
        self.nodes.append(helper.make_node("Cast", [total], ["total"], "/mask/Cast_1", to=6))
        tables = self.tables()
        stream = self.embedding()
        gamma = self.weight("model.layers.0.input_layernorm.weight", self.normal(HIDDEN, mean=1.0))
        norm = self.add("SimplifiedLayerNormalization", [stream, gamma], "/model/layers.0/norm", epsilon=1e-6, axis=-1)
        for layer in range(LAYERS):
            added = self.attention(norm, layer, tables)
            norm, stream = self.skip_norm(stream, added, f"/model/layers.{layer}/post_attention_layernorm")
            added = self.feed_forward(norm, layer)
            norm, stream = self.skip_norm(stream, added, f"/model/layers.{layer + 1}/input_layernorm")
        head = self.product(norm, "/lm_head/MatMul", VOCABULARY, HIDDEN)
        self.nodes.append(helper.make_node("Identity", [head], ["logits"], "/lm_head/Identity"))
        ids = [("input_ids", "tokens"), ("attention_mask", "total_tokens")]
        ids += [] if self.rotary_inside else [("position_ids", "tokens")]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", axis]) for name, axis in ids]
        outputs = [helper.make_tensor_value_info("logits", self.kind, ["batch", "tokens", VOCABULARY])]
        for layer in range(LAYERS):
            for part in ("key", "value"):
                for names, kind, axis in ((inputs, "past_key_values", "past"), (outputs, "present", "total")):
                    dims = ["batch", KEYS, axis, SIZE]
                    names.append(helper.make_tensor_value_info(f"{kind}.{layer}.{part}", self.kind, dims))
        graph = helper.make_graph(self.nodes, "main_graph", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


GENAI = {
    "model": {
        "type": "llama",
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "eos_token_id": [2, 5],
        "bos_token_id": 1,
    }
}


def saved(model: onnx.ModelProto, folder: Path, external: bool = False) -> Path:
    """Write a model as the builder does; return the .onnx file."""
    path = folder / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=external, location="model.onnx.data", size_threshold=64)
    (folder / "genai_config.json").write_text(json.dumps(GENAI))
    return path


def built(folder: Path, external: bool = False, **options: Any) -> Path:
    """A random decoder of these options, written as the builder writes it."""
    return saved(BuilderGraph(**options).model(), folder, external)
