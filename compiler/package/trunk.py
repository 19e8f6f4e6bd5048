"""Build trunk.bin and embeddings.bin: what of a model belongs to no shard."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.quantization.quantize import SHARED_SCALE, QuantizedModel
from stic.compiler.sharding import layer_trunk, shard_bias
from stic.runtime.errors import InputError
from stic.runtime.format import ACTIVATIONS, ALIGN, BLOCK, DENSE, LAYER, TILE, pad, row_stride

_ROWS = 1024  # of the embedding table, quantised together


@dataclass(frozen=True, eq=False)
class Trunk:
    """trunk.bin and the index entries that point into it."""

    data: bytes
    header: dict[str, int]  # the header's *_at fields
    layers: NDArray[np.void]  # LAYER, without `slices` and `full`
    dense: NDArray[np.void]  # DENSE


class _Writer:
    """Appends tensors at multiples of ALIGN."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, tensor: NDArray[np.generic]) -> int:
        """Append a tensor; returns its offset."""
        at = self.size
        data = np.ascontiguousarray(tensor).tobytes()
        data += bytes(-len(data) % ALIGN)
        self.parts.append(data)
        self.size += len(data)
        return at


def _padded(values: NDArray[np.float32], *shape: int) -> NDArray[np.float32]:
    result = np.zeros(shape, np.float32)
    result[tuple(slice(n) for n in values.shape)] = values
    return result


def build_trunk(quantized: QuantizedModel, max_length: int) -> Trunk:
    """Collect the trunk of a quantised model for inputs of at most `max_length` tokens.

    Raises InputError if the model's position table is shorter than that.
    """
    sharded = quantized.sharded
    model, geometry = sharded.model, sharded.geometry
    width, table = geometry.HP, model.embeddings
    if max_length > model.max_length:
        raise InputError(f"{model.name} has positions for {model.max_length} tokens, not for {max_length}")
    writer = _Writer()
    rows = table.position[table.position_offset : table.position_offset + max_length]
    if table.padding is not None:
        rows = np.concatenate([rows, table.position[table.position_offset - 1 :][:1]])
    types = np.zeros((1, width), np.float32) if table.token_type is None else table.token_type
    header = {
        "position_at": writer.add(_padded(rows, len(rows), width).astype(np.float16)),
        "token_type_at": writer.add(_padded(types, len(types), width).astype(np.float16)),
        "embedding_gamma_at": writer.add(_padded(table.norm.gamma, width)),
        "embedding_beta_at": writer.add(_padded(table.norm.beta, width)),
    }
    layers = np.zeros(geometry.layers, LAYER)
    for number, entry in enumerate(layers):
        whole = layer_trunk(sharded, number)
        biases = [shard_bias(sharded, number, s) for s in range(geometry.slices)]
        for name in ("qkv", "out", "up", "down"):
            slices = range(1 if name in SHARED_SCALE else geometry.slices)
            entry[f"{name}_scale_at"] = writer.add(
                np.stack([quantized.matrix(number, s, name).scale for s in slices]).astype(np.float32)
            )
        for name in ("qkv", "up"):
            entry[f"{name}_bias_at"] = writer.add(np.stack([bias[name] for bias in biases]))
        entry["out_bias_at"] = writer.add(whole.out_bias)
        entry["down_bias_at"] = writer.add(whole.down_bias)
        for name in ("attention_gamma", "attention_beta", "ffn_gamma", "ffn_beta"):
            entry[f"{name}_at"] = writer.add(getattr(whole, name))
    dense = np.zeros(len(model.head.dense), DENSE)
    for entry, part in zip(dense, model.head.dense, strict=True):
        n, k = part.linear.weight.shape
        weight = _padded(part.linear.weight, pad(n, TILE), pad(k, TILE)).astype(np.float16)
        entry["rows"], entry["columns"] = n, k
        entry["activation"] = ACTIVATIONS.index(part.activation)
        entry["weight_at"] = writer.add(weight)
        entry["bias_at"] = writer.add(_padded(part.linear.bias, pad(n, TILE)))
    return Trunk(b"".join(writer.parts), header, layers, dense)


def build_embeddings(word: NDArray[np.float32]) -> bytes:
    """Quantise the word embedding table (vocabulary, hidden) to rows of embeddings.bin, padded to whole blocks."""
    (vocabulary, hidden), stride = word.shape, row_stride(word.shape[1])
    data = np.zeros(pad(vocabulary * stride, BLOCK), np.uint8)
    rows, at = data[: vocabulary * stride].reshape(vocabulary, stride), pad(hidden, 4)
    for first in range(0, vocabulary, _ROWS):  # the products of all rows would take twice the table's memory
        _quantise_rows(word[first : first + _ROWS], rows[first : first + _ROWS])
    for row in rows:
        row[at + 4 : at + 8] = np.frombuffer(zlib.crc32(row[: at + 4].tobytes()).to_bytes(4, "little"), np.uint8)
    return data.tobytes()


def _quantise_rows(word: NDArray[np.float32], rows: NDArray[np.uint8]) -> None:
    """Fill rows of embeddings.bin with codes and scales."""
    hidden = word.shape[1]
    scale = (np.abs(word).max(axis=1) / np.float32(127)).astype(np.float32)
    safe = np.where(scale > 0, scale, np.float32(1))
    rows[:, :hidden] = np.clip(np.rint(word / safe[:, None]), -127, 127).astype(np.int8).view(np.uint8)
    at = pad(hidden, 4)
    rows[:, at : at + 4] = scale[:, None].astype("<f4").view(np.uint8)
