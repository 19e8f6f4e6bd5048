"""Build trunk.bin and embeddings.bin: what of a model belongs to no shard."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.sharding import layer_trunk, shard_bias
from stic.runtime.errors import InputError
from stic.runtime.format import ABSENT, ACTIVATIONS, ALIGN, BLOCK, BLOCK_ENTRY, DENSE, JOINED, MATRICES, ROLES, TILE
from stic.runtime.layout import pad, row_bytes, row_stride

BEYOND_HALF = 65520.0  # the least magnitude that float16 rounds to infinity

_ROWS = 1024  # of the embedding table, quantised together


@dataclass(frozen=True, eq=False)
class Trunk:
    """trunk.bin and the index entries that point into it."""

    data: bytes
    model: dict[str, int]  # the *_at fields of MODEL
    blocks: NDArray[np.void]  # BLOCK_ENTRY
    dense: NDArray[np.void]  # DENSE


def finite(values: NDArray[np.floating[Any]], model: str, what: str) -> NDArray[np.floating[Any]]:
    """`values` as a package stores them. Raises InputError if one is NaN or infinite, as float16 is beyond 65504."""
    if not np.isfinite(values).all():
        limit = " or beyond 65504, the largest number that a package stores there" if values.dtype == np.float16 else ""
        raise InputError(f"{model}: {what} holds values that are NaN or infinite{limit}; train or export it again")
    return values


class TensorWriter:
    """Appends the tensors of a model at multiples of ALIGN."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, what: str, tensor: NDArray[np.floating[Any]]) -> int:
        """Append a tensor; returns its offset. Raises InputError if it holds what is no number."""
        finite(tensor, self.model, what)
        at = self.size
        data = np.ascontiguousarray(tensor).tobytes()
        data += bytes(-len(data) % ALIGN)
        self.parts.append(data)
        self.size += len(data)
        return at

    @property
    def data(self) -> bytes:
        """All tensors, each at its offset."""
        return b"".join(self.parts)


def absent_entries(blocks: int) -> NDArray[np.void]:
    """Table BLOCK of blocks without tensors."""
    entries = np.zeros(blocks, BLOCK_ENTRY)
    for role in ROLES:
        entries[f"{role}_at"] = ABSENT
    return entries


def _padded(values: NDArray[np.float32], *shape: int) -> NDArray[np.float32]:
    result = np.zeros(shape, np.float32)
    result[tuple(slice(n) for n in values.shape)] = values
    return result


def half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Values of float16; what it cannot hold becomes infinite."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused with a sentence
        return values.astype(np.float16)


def build_trunk(quantized: QuantizedModel, max_length: int) -> Trunk:
    """Collect the trunk of a quantised model for inputs of at most `max_length` tokens.

    Raises InputError if the model's position table is shorter than that, or a tensor holds NaN or infinite values.
    """
    sharded = quantized.sharded
    model, geometry = sharded.model, sharded.geometry
    width, table = geometry.HP, model.embeddings
    if max_length > model.max_length:
        raise InputError(f"{model.name} has positions for {model.max_length} tokens, not for {max_length}")
    writer = TensorWriter(model.name)
    rows = table.position[table.position_offset : table.position_offset + max_length]
    if table.padding is not None:
        rows = np.concatenate([rows, table.position[table.position_offset - 1 :][:1]])
    types = np.zeros((1, width), np.float32) if table.token_type is None else table.token_type
    places = {
        "position_at": writer.add("the position table", half(_padded(rows, len(rows), width))),
        "token_type_at": writer.add("the token type table", half(_padded(types, len(types), width))),
        "embedding_gamma_at": writer.add("the embeddings' norm", _padded(table.norm.gamma, width)),
        "embedding_beta_at": writer.add("the embeddings' norm", _padded(table.norm.beta, width)),
        "rotary_at": ABSENT,
    }
    blocks = absent_entries(geometry.layers)
    for number, entry in enumerate(blocks):
        whole = layer_trunk(sharded, number)
        biases = [shard_bias(sharded, number, s) for s in range(geometry.slices)]
        for name in MATRICES["layer"]:
            slices = range(1 if name in JOINED else geometry.slices)
            scales = np.stack([quantized.matrix(number, s, name).scale for s in slices]).astype(np.float32)
            entry[f"{name}_scale_at"] = writer.add(f"layer {number}, the scale of {name}", scales)
        for name in ("qkv", "up"):
            stacked = np.stack([bias[name] for bias in biases])
            entry[f"{name}_bias_at"] = writer.add(f"layer {number}, the bias of {name}", stacked)
        entry["out_bias_at"] = writer.add(f"layer {number}, the bias of out", whole.out_bias)
        entry["down_bias_at"] = writer.add(f"layer {number}, the bias of down", whole.down_bias)
        for norm, role in (("attention", "attention"), ("ffn", "post")):
            for kind in ("gamma", "beta"):
                what = f"layer {number}, {norm}_{kind} of a norm"
                entry[f"{role}_{kind}_at"] = writer.add(what, getattr(whole, f"{norm}_{kind}"))
    dense = np.zeros(len(model.head.dense), DENSE)
    for number, (entry, part) in enumerate(zip(dense, model.head.dense, strict=True)):
        n, k = part.linear.weight.shape
        weight = half(_padded(part.linear.weight, pad(n, TILE), pad(k, TILE)))
        entry["rows"], entry["columns"] = n, k
        entry["activation"] = ACTIVATIONS.index(part.activation)
        entry["weight_at"] = writer.add(f"the head's layer {number}, its weight", weight)
        entry["bias_at"] = writer.add(f"the head's layer {number}, its bias", _padded(part.linear.bias, pad(n, TILE)))
    return Trunk(writer.data, places, blocks, dense)


def build_embeddings(word: NDArray[np.float32], row_type: str = "int8", packed: bool = False) -> bytes:
    """The word embedding table (vocabulary, hidden) as rows of embeddings.bin, padded to whole blocks.

    Raises InputError if it holds NaN or infinite values, or where float16, asked for as `row_type`, cannot hold one.
    """
    (vocabulary, hidden), stride = word.shape, row_stride(word.shape[1], row_type, packed)
    data = np.zeros(pad(vocabulary * stride, BLOCK), np.uint8)
    rows, checked = data[: vocabulary * stride].reshape(vocabulary, stride), row_bytes(hidden, row_type) - 4
    fill = _half_rows if row_type == "float16" else _quantised_rows
    for first in range(0, vocabulary, _ROWS):  # the products of all rows would take twice the table's memory
        part = word[first : first + _ROWS]
        if not (finite := np.isfinite(part).all(axis=1)).all():
            raise InputError(
                f"the word embedding of token {first + int(np.argmin(finite))} holds values that are NaN or infinite;"
                " train or export it again"
            )
        fill(part, rows[first : first + _ROWS])
    for row in rows:
        row[checked : checked + 4] = np.frombuffer(zlib.crc32(row[:checked].tobytes()).to_bytes(4, "little"), np.uint8)
    return data.tobytes()


def _half_rows(word: NDArray[np.float32], rows: NDArray[np.uint8]) -> None:
    """Fill rows of embeddings.bin with values of float16. Raises InputError where it cannot hold one."""
    if np.abs(word).max() >= BEYOND_HALF:
        raise InputError(
            f"the word table has a value of magnitude {np.abs(word).max():.6g}, which float16 cannot hold:"
            " compile it with --embedding-bits 8"
        )
    rows[:, : 2 * word.shape[1]] = word.astype("<f2").view(np.uint8)


def _quantised_rows(word: NDArray[np.float32], rows: NDArray[np.uint8]) -> None:
    """Fill rows of embeddings.bin with codes and scales."""
    hidden = word.shape[1]
    scale = (np.abs(word).max(axis=1) / np.float32(127)).astype(np.float32)
    safe = np.where(scale > 0, scale, np.float32(1))
    rows[:, :hidden] = np.clip(np.rint(word / safe[:, None]), -127, 127).astype(np.int8).view(np.uint8)
    at = pad(hidden, 4)
    rows[:, at : at + 4] = scale[:, None].astype("<f4").view(np.uint8)
