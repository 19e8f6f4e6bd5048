"""Models as other runtimes take them: ONNX with float32 weights, where their quantizers look for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


def export_float32(directory: Path, out: Path) -> None:
    """Export a Hugging Face directory; out's folder gets its tokenizer and configuration too. Raises InputError."""
    import onnx

    from stic.compiler.export.huggingface import export_model
    from stic.runtime.files import whole_file

    with whole_file(out) as stored:
        export_model(directory, stored)
        model = onnx.load(stored)
        widen(model)
        onnx.save(model, stored)


def widen(model: ModelProto) -> None:
    """Store float16 weights as float32, and use them without the casts that they came through."""
    from onnx import TensorProto, numpy_helper

    graph, widened = model.graph, set()
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            widened.add(tensor.name)
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in widened]
    names = {node.output[0]: node.input[0] for node in casts}
    for node in casts:
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
