"""Hugging Face directory -> ONNX, without torch: `stic export`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from stic.compiler.export.families import ACTIVATIONS, FAMILIES, Classifier, Family, refusal
from stic.compiler.export.files import write_all
from stic.compiler.export.graph import ExportedGraph, GraphWriter
from stic.compiler.frontend.folders import onnx_file
from stic.compiler.frontend.safetensors import Weights
from stic.compiler.frontend.sentence_modules import Modules, read_modules, transformer_folder
from stic.compiler.frontend.sharded_safetensors import ShardedWeights, open_weights
from stic.compiler.model import Head
from stic.runtime.errors import InputError
from stic.runtime.format import Pooling

Tensors: TypeAlias = Weights | ShardedWeights


def export_model(hf_dir: Path, out: Path, pooling: str | None = None) -> None:
    """Write the ONNX file `out`, and tokenizer.json and config.json beside it, from a Hugging Face directory.

    The graph takes input_ids and attention_mask (and token_type_ids, if the family has them), each (batch, sequence)
    int64. Its output is `logits` for a ...ForSequenceClassification architecture; `sentence_embedding` with pooling
    "mean" or "first", which for a sentence-transformers directory is its own; else `last_hidden_state` (pooling
    "tokens") and, where the model has a pooler, `pooler_output`. float16 weights stay float16 in the file and are cast
    in the graph.
    Files appear whole or not at all. InputError says what is missing or not supported.
    """
    exported, folder = exported_graph(Path(hf_dir), pooling)
    write_all(exported, _json(folder / "config.json"), (folder, Path(hf_dir)), Path(out))


def exported_graph(hf_dir: Path, pooling: str | None = None) -> tuple[ExportedGraph, Path]:
    """Return the graph that `export_model` writes, its weights views of the mapped file where they are float32 or
    float16, and the folder that holds them. Raises InputError.
    """
    if pooling not in (None, "mean", "first", "tokens"):
        raise InputError(f"pooling '{pooling}' is not known; use mean, first (the [CLS] token) or tokens")
    onnx_beside = onnx_file(hf_dir) if hf_dir.is_dir() else None
    if onnx_beside is not None:
        raise InputError(f"{onnx_beside} is ONNX already: give it, or {hf_dir}, to `stic compile` and the others")
    folder = transformer_folder(hf_dir)
    return _encoder(folder, _json(folder / "config.json"), pooling, read_modules(hf_dir)), folder


def _json(path: Path, kind: type = dict) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a Hugging Face directory (config.json and model.safetensors)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, kind):
        raise InputError(f"{path} holds no {'object' if kind is dict else 'list'}; it is damaged")
    return content


def _encoder(folder: Path, config: dict[str, Any], pooling: str | None, modules: Modules | None) -> ExportedGraph:
    where = folder / "config.json"
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise InputError(f"{where}: {refusal(config)}")
    if config.get("is_decoder") or config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"{where}: only encoders with absolute positions are supported (no decoder, no relative positions)"
        )
    sizes = [config.get(key) for key in (family.layers, family.heads, family.hidden, family.ffn)]
    if any(not isinstance(size, int) or size < 1 for size in sizes) or sizes[2] % sizes[1]:  # type: ignore[operator]
        raise InputError(
            f"{where}: layers, heads, hidden and FFN sizes are {sizes}; expected whole numbers that divide"
        )
    narrow = config.get("embedding_size", sizes[2])
    if narrow != sizes[2]:
        raise InputError(
            f"{where}: its embeddings are {narrow} wide and pass a linear map to layers of {sizes[2]};"
            " only models whose embedding_size is their hidden_size are supported"
        )
    activation = ACTIVATIONS.get(str(config.get(family.activation, "gelu")))
    if activation is None:
        raise InputError(
            f"{where}: activation '{config.get(family.activation)}' is not supported; gelu, gelu_new and relu are"
        )
    architecture = str((config.get("architectures") or ["Model"])[0])
    classifier = architecture.endswith("ForSequenceClassification")
    if not classifier and not architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining")):
        raise InputError(
            f"{where}: architecture '{architecture}' is not supported; encoders and ...ForSequenceClassification are"
        )
    if classifier and (pooling is not None or (modules is not None and modules.pools)):
        raise InputError(f"{where}: '{architecture}' pools by itself; leave the pooling out")
    weights = open_weights(folder)
    weights.use_prefix(family.prefix, "embeddings.word_embeddings.weight")
    writer = GraphWriter()
    hidden = int(sizes[2])  # type: ignore[arg-type]
    x, inputs = _embeddings(writer, weights, config, family, hidden)
    x = _layers(writer, weights, config, family, activation, x)
    if classifier:
        outputs = {"logits": _classifier(writer, weights, family.classifier, hidden, x)}
    else:
        head = modules.head if modules is not None else Head("tokens")
        outputs = _pooled(writer, weights, replace(head, pooling=cast(Pooling, pooling or head.pooling)), hidden, x)
    return writer.graph(inputs, outputs)


def _linear(
    writer: GraphWriter, weights: Tensors, x: str, name: str, out: int | None, size: int, whole: bool = False
) -> str:
    weight = weights.get(f"{name}.weight", (out, size), whole)
    return writer.linear(x, name, weight, weights.get(f"{name}.bias", (weight.shape[0],), whole))


def _norm(writer: GraphWriter, weights: Tensors, x: str, name: str, size: int, epsilon: float) -> str:
    return writer.norm(x, name, weights.get(f"{name}.weight", (size,)), weights.get(f"{name}.bias", (size,)), epsilon)


def _embeddings(
    writer: GraphWriter, weights: Tensors, config: dict[str, Any], family: Family, hidden: int
) -> tuple[str, tuple[str, ...]]:
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")

    def table(name: str) -> tuple[str, NDArray[Any]]:
        full = f"embeddings.{name}_embeddings.weight"
        return full, weights.get(full, (None, hidden))

    words, positions = table("word"), table("position")
    padding = _padding(config, len(words[1]), len(positions[1])) if family.padded_positions else None
    if config.get("use_task_id"):  # ERNIE: every token is of task 0, which transformers takes unless told otherwise
        task = table("task_type")[1][0]
        positions = (positions[0], positions[1].astype(np.float32) + task.astype(np.float32))
    x = writer.rows(*words, "input_ids")
    if family.types == "input":
        inputs = (*inputs, "token_type_ids")
        x = writer.add("Add", x, writer.rows(*table("token_type"), "token_type_ids"))
    elif family.types == "zero":
        x = writer.add("Add", x, writer.rows(*table("token_type"), writer.add("Sub", "input_ids", "input_ids")))
    x = writer.add("Add", x, writer.rows(*positions, writer.positions("input_ids", padding)))
    return _norm(writer, weights, x, "embeddings.LayerNorm", hidden, _epsilon(config)), inputs


def _padding(config: dict[str, Any], words: int, positions: int) -> int:
    """The id of padding, from which positions count on; it must be one, and leave positions for tokens."""
    padding = _number(config, "pad_token_id", 1, int)
    if not 0 <= padding < min(words, positions - 1):
        raise InputError(
            f"config.json: pad_token_id is {padding}, from which positions count on; expected one of the {words} tokens"
            f" and below the {positions} positions: give the number that the model was trained with"
        )
    return int(padding)


def _epsilon(config: dict[str, Any]) -> float:
    return float(_number(config, "layer_norm_eps", 1e-12, float))


def _number(config: dict[str, Any], key: str, default: Any, kind: type) -> Any:
    value = config.get(key)
    if value is not None and not isinstance(value, int | float):
        raise InputError(f"config.json: {key} is {value!r}; expected a number")
    return kind(default if value is None else value)


def _layers(
    writer: GraphWriter, weights: Tensors, config: dict[str, Any], family: Family, activation: str, x: str
) -> str:
    count, heads, hidden, ffn = (int(config[k]) for k in (family.layers, family.heads, family.hidden, family.ffn))
    bias = writer.mask_bias("attention_mask")
    for number in range(count):
        names = {part: name.format(number) for part, name in family.names.items()}
        projected = [_linear(writer, weights, x, names[part], hidden, hidden) for part in ("query", "key", "value")]
        merged = writer.attention(projected[0], projected[1], projected[2], bias, heads, hidden // heads)
        y = writer.add("Add", _linear(writer, weights, merged, names["output"], hidden, hidden), x)
        y = _norm(writer, weights, y, names["attention_norm"], hidden, _epsilon(config))
        z = writer.activation(_linear(writer, weights, y, names["up"], ffn, hidden), activation)
        z = writer.add("Add", _linear(writer, weights, z, names["down"], hidden, ffn), y)
        x = _norm(writer, weights, z, names["ffn_norm"], hidden, _epsilon(config))
    return x


_Output = tuple[str, tuple[str | int, ...]]


def _classifier(writer: GraphWriter, weights: Tensors, head: Classifier, hidden: int, x: str) -> _Output:
    x = _linear(writer, weights, writer.first(x), head.dense, hidden, hidden, not head.pooler)
    x = writer.activation(x, head.activation)
    return _linear(writer, weights, x, head.out, None, hidden, True), ("batch", "labels")


def _pooled(writer: GraphWriter, weights: Tensors, head: Head, hidden: int, x: str) -> dict[str, _Output]:
    unit = head.normalize
    if head.pooling != "tokens":
        pooled = writer.mean(x, "attention_mask") if head.pooling == "mean" else writer.first(x)
        for number, dense in enumerate(head.dense):
            if dense.linear.weight.shape[1] != hidden:
                size = dense.linear.weight.shape[1]
                raise InputError(f"modules.json: Dense {number} takes {size} features; it is given {hidden}")
            pooled = writer.linear(pooled, f"dense.{number}", dense.linear.weight, dense.linear.bias)
            hidden = len(dense.linear.bias)
            pooled = pooled if dense.activation == "none" else writer.activation(pooled, dense.activation)
        return {"sentence_embedding": (writer.unit(pooled) if unit else pooled, ("batch", hidden))}
    outputs: dict[str, _Output] = {"last_hidden_state": (writer.unit(x) if unit else x, ("batch", "sequence", hidden))}
    if "pooler.dense.weight" in weights:
        pooler = _linear(writer, weights, writer.first(x), "pooler.dense", hidden, hidden)
        outputs["pooler_output"] = (writer.activation(pooler, "tanh"), ("batch", hidden))
    return outputs
