"""Whether a decoder that was read from a graph computes what the graph computes: the same random tokens, both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from stic.compiler.decoder.forward import Ids, logits
from stic.compiler.decoder.model import Array, Decoder
from stic.compiler.frontend.decoder_graph_values import DecoderGraph, attribute
from stic.compiler.frontend.load import first_line
from stic.runtime.architecture import Attention
from stic.runtime.errors import UnsupportedModelError

TOKENS = 32
# Options of onnxruntime's operators that change how they compute, not what: products in float32, caches of all tokens.
_EXACT = {"accuracy_level": 1, "sliding_window_cache": 0}


def check_same(decoder: Decoder, graph: DecoderGraph) -> None:
    """Raise UnsupportedModelError where logits differ by more than 1e-3 of the largest (graphs in float16: 8e-3).

    Without onnxruntime nothing is compared.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return
    count = min(TOKENS, decoder.architecture.context)
    ids = np.random.default_rng(0).integers(0, decoder.architecture.vocabulary, (1, count))
    error = difference(decoder, graph, ids)
    if not error < graph.precision.output:
        raise UnsupportedModelError(
            f"{graph.where}: it was read as a decoder of {len(decoder.architecture.blocks)} blocks, but at output"
            f" '{graph.output}' onnxruntime differs from that decoder by {error:.2g} of the largest logit; expected the"
            " same function: report the model"
        )


def difference(decoder: Decoder, graph: DecoderGraph, ids: Ids) -> float:
    """How far logits of `ids` (1, tokens) lie from onnxruntime's, relative to the largest of these."""
    wanted = graph_logits(decoder, graph, ids)
    with np.errstate(all="ignore"):  # damaged weights overflow; they then differ, or are refused as such
        found = logits(decoder, ids)[:, -wanted.shape[1] :]
    if found.shape != wanted.shape:
        raise UnsupportedModelError(f"{graph.where}: its logits are {wanted.shape}; it was read as {found.shape}")
    return float(np.abs(found - wanted).max() / max(1e-6, float(np.abs(wanted).max())))


def graph_logits(decoder: Decoder, graph: DecoderGraph, ids: Ids) -> Array:
    """Logits of `ids` (1, tokens) by onnxruntime, (1, tokens or 1, vocabulary).

    Products with 4-bit weights are asked for in float32, whatever the file allows. Raises UnsupportedModelError if
    onnxruntime does not run the graph.
    """
    import onnxruntime as ort

    assert decoder.source is not None
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        model, folder = _exact(decoder), str(decoder.source.parent.resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feeds = _feeds(decoder, graph, session.get_inputs(), ids)
        result: Array = np.asarray(session.run([graph.output], feeds)[0], np.float32)
    except Exception as error:  # onnxruntime raises many kinds
        raise UnsupportedModelError(
            f"{graph.where}: onnxruntime does not run it, so that what was read cannot be checked: {first_line(error)}"
        ) from error
    return result.reshape(1, -1, result.shape[-1])


def _exact(decoder: Decoder) -> bytes:
    """The file for onnxruntime on a CPU: products in float32, not in int8, and norms of heads outside of attention."""
    assert decoder.source is not None
    model = onnx.load(str(decoder.source), load_external_data=False)
    nodes = [one for node in model.graph.node for one in _norms_outside(node)]
    for node in nodes:
        for option in node.attribute:
            if option.name in _EXACT:
                option.i = _EXACT[option.name]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _norms_outside(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A GroupQueryAttention whose queries and keys are normed before it, as its CPU kernel needs them; others as is."""
    names = list(node.input)
    if node.op_type != "GroupQueryAttention" or len(names) < 16 or not names[14]:
        yield node
        return
    base, vectors = f"{node.output[0]}/norms", names[14:16]
    heads, keys = (int(attribute(node, f"{kind}num_heads", 1)) for kind in ("", "kv_"))
    shape, parts = [0, 0, heads + 2 * keys, -1], [f"{base}/{part}" for part in "qkv"]
    if not names[1]:  # packed: heads on an axis of their own are split by their numbers
        yield from _reshaped(names[0], shape, f"{base}/heads")
        yield _constant([heads, keys, keys], f"{base}/sizes")
        yield helper.make_node("Split", [f"{base}/heads", f"{base}/sizes"], [f"{p}/heads" for p in parts], axis=2)
    else:
        for name, part, count in zip(names, parts, (heads, keys, keys), strict=False):
            yield from _reshaped(name, [0, 0, count, -1], f"{part}/heads")
    epsilon = attribute(node, "qk_norm_epsilon", 1e-6)
    for part, gamma in zip(parts, [*vectors, ""], strict=True):
        made = f"{part}/heads"
        if gamma:
            yield helper.make_node(
                "SimplifiedLayerNormalization", [made, gamma], [f"{part}/normed"], epsilon=epsilon, axis=-1
            )
            made = f"{part}/normed"
        yield from _reshaped(made, [0, 0, -1], part)
    node.input[:] = [*parts, *names[3:14]]
    yield node


def _reshaped(name: str, shape: list[int], made: str) -> Iterator[onnx.NodeProto]:
    yield _constant(shape, f"{made}/shape")
    yield helper.make_node("Reshape", [name, f"{made}/shape"], [made])


def _constant(numbers: list[int], made: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [made], value_ints=numbers)


def _feeds(decoder: Decoder, graph: DecoderGraph, inputs: Any, ids: Ids) -> Mapping[str, NDArray[Any]]:
    """A prompt without past, for every input of the file."""
    attention = next(block for block in decoder.architecture.blocks if isinstance(block, Attention))
    feeds: dict[str, NDArray[Any]] = {}
    for one in inputs:
        role = graph.roles.get(one.name, "past" if len(one.shape) == 4 else "branch")
        batch = one.shape[0] if isinstance(one.shape[0], int) and role != "branch" else 1
        kind: Any = _KINDS[one.type]
        if role == "past":
            feeds[one.name] = np.zeros((batch, attention.key_heads, 0, attention.head_dim), kind)
        elif role == "branch":
            feeds[one.name] = np.ones([1] * len(one.shape), kind)
        else:
            numbers = {"ids": ids, "positions": np.arange(ids.shape[1])}.get(role, np.ones(ids.shape[1]))
            feeds[one.name] = np.broadcast_to(numbers, (batch, ids.shape[1])).astype(kind)
    return feeds


_KINDS = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}  # fmt: skip
