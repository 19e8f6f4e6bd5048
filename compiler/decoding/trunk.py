"""The trunk of a decoder: norms, biases and scales of every block, learned positions, rotary tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array, Decoder
from stic.compiler.decoding.cut import Cut
from stic.compiler.package.trunk import TensorWriter, Trunk, absent_entries, half
from stic.runtime.architecture import Attention, FeedForward, Rotary, Vocabulary
from stic.runtime.errors import InputError
from stic.runtime.format import ABSENT, FLAGS, JOINED
from stic.runtime.layout import Shape

Scales = Callable[[int, str], Array]  # (block, matrix) -> (slices, N), or (HP,) of a matrix whose columns are slices


def build_decoder_trunk(cut: Cut, scales: Scales, context: int) -> Trunk:
    """Collect the trunk of a decoder for sessions of `context` tokens.

    Raises InputError if the model has fewer positions than that, or a tensor holds NaN or infinite values.
    """
    decoder = cut.decoder
    architecture, writer = decoder.architecture, TensorWriter(decoder.name)
    if context > architecture.context:
        raise InputError(f"{decoder.name} was made for {architecture.context} tokens, not for a context of {context}")
    places = dict.fromkeys(("position_at", "token_type_at", "embedding_gamma_at", "embedding_beta_at"), ABSENT)
    if architecture.embedding.positions:
        rows = _read(decoder, None, "position")[:context]
        padded = _padded(rows, len(rows), cut.shapes[0].padded_hidden)
        places["position_at"] = writer.add("the position table", half(padded))
    tables = [rotary_table(rotary.at(context), context) for rotary in architecture.rotaries]
    places["rotary_at"] = writer.add("the rotary tables", np.stack(tables)) if tables else ABSENT
    entries = absent_entries(len(cut.shapes))
    for number, (block, shape) in enumerate(zip(cut.blocks, cut.shapes, strict=True)):
        tensors = _norms(decoder, number, shape) | _biases(cut, number) | _scales(shape, number, scales)
        for role, tensor in tensors.items():
            entries[number][f"{role}_at"] = writer.add(f"block {number}, {role}", tensor)
        _facts(entries[number], block)
    return Trunk(writer.data, places, entries, np.zeros(0, np.void))


def rotary_table(rotary: Rotary, context: int) -> Array:
    """Return (context, features): a position's cosines of each pair of features, then its sines, times the magnitude.

    The angle is a float32 product, as in the models' own code.
    """
    positions = np.arange(context, dtype=np.float32)[:, None]
    angles = (positions * np.asarray(rotary.frequencies, np.float32)).astype(np.float64)
    turns = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * rotary.magnitude
    return turns.astype(np.float32)


def _facts(entry: NDArray[np.void], block: Attention | FeedForward | Vocabulary) -> None:
    """What a block is, beside its tensors."""
    flags = set()
    if isinstance(block, Attention):
        entry["window"], entry["softcap"] = block.window or 0, block.softcap or 0.0
        entry["rotary"] = 0 if block.rotary is None else block.rotary + 1
        if block.head_norm == "whole":
            flags.add("whole_head_norm")
        if block.head_norm_kind is not None and block.head_norm_kind.kind == "layer":
            flags.add("layer_head_norm")
    elif isinstance(block, FeedForward):
        flags |= {"parallel"} if block.parallel else set()
    else:
        entry["softcap"] = block.softcap or 0.0
    entry["flags"] = sum(1 << FLAGS.index(flag) for flag in flags)


def _norms(decoder: Decoder, number: int, shape: Shape) -> dict[str, Array]:
    """Gamma and beta of the norms of a block; those of queries and keys by slice, a head's repeated for each head."""
    block, found = decoder.architecture.blocks[number], {}
    for place in ("input", "branch", "post"):
        for part in ("gamma", "beta"):
            if getattr(block.norms, place) is not None:
                tensor = decoder.weights.read(number, f"{place}_{part}")
                if tensor is not None:
                    found[f"{place}_{part}"] = _padded(tensor, shape.padded_hidden)
    if isinstance(block, Attention) and block.head_norm is not None:
        for role, heads, width in (
            ("query_norm", shape.heads_per_slice, shape.attention_width),
            ("key_norm", shape.key_heads_per_slice, shape.key_width),
        ):
            for part in ("gamma", "beta"):
                tensor = decoder.weights.read(number, f"{role}_{part}")
                if tensor is not None:
                    one_head = tensor.size == block.head_dim
                    every = np.tile(tensor.ravel(), shape.slices * heads) if one_head else tensor.ravel()
                    found[f"{role}_{part}"] = _padded(every.reshape(shape.slices, -1), shape.slices, width)
    return found


def _biases(cut: Cut, number: int) -> dict[str, Array]:
    """Biases of a block's matrices, zeros where only others of the same matrix have one; none where none has."""
    block, shape, read = cut.blocks[number], cut.shapes[number], cut.decoder.weights.read
    wide: tuple[int, ...]
    if isinstance(block, Attention):
        heads = {role: shape.heads_per_slice if role == "query" else shape.key_heads_per_slice for role in _QKV}
        parts = {role: (read(number, f"{role}_bias"), heads[role] * shape.head_dim) for role in _QKV}
        wide = (shape.attention_width, shape.key_width, shape.key_width)
        split, joined = "qkv", ("out", "output")
    elif isinstance(block, FeedForward):
        roles = ("gate", "up") if block.gated else ("up",)
        parts = {role: (read(number, f"{role}_bias"), shape.neurons_per_slice) for role in roles}
        wide = (shape.ffn_width,) * len(roles)
        split, joined = "up", ("down", "down")
    else:
        parts = {"head": (read(number, "head_bias"), shape.rows_per_slice)}
        wide = (shape.head_width,)
        split, joined = "head", ("", "")
    found = {}
    if any(bias is not None for bias, _ in parts.values()):
        columns = [
            _by_slice(bias, each, shape.slices, width) for (bias, each), width in zip(parts.values(), wide, strict=True)
        ]
        found[f"{split}_bias"] = np.concatenate(columns, axis=1)
    whole = read(number, f"{joined[1]}_bias") if joined[1] else None
    if whole is not None:
        found[f"{joined[0]}_bias"] = _padded(whole, shape.padded_hidden)
    return found


_QKV = ("query", "key", "value")


def _by_slice(bias: Array | None, each: int, slices: int, width: int) -> Array:
    """A bias of all slices, (slices, width), from the whole one, of which each slice has `each` features."""
    result = np.zeros((slices, width), np.float32)
    for index in range(slices if bias is not None else 0):
        assert bias is not None
        own = bias[index * each : (index + 1) * each]
        result[index, : len(own)] = own
    return result


def _scales(shape: Shape, number: int, scales: Scales) -> dict[str, Array]:
    """Scales of a block's matrices, in their shape in the trunk."""
    sizes = {name: (() if name in JOINED else (shape.slices,)) + (shape.matrix(name)[0],) for name in shape.matrices}
    return {f"{name}_scale": scales(number, name).reshape(size) for name, size in sizes.items()}


def _read(decoder: Decoder, block: int | None, role: str) -> Array:
    tensor = decoder.weights.read(block, role)
    assert tensor is not None, "only biases are optional"
    return tensor


def _padded(values: Array, *shape: int) -> Array:
    result = np.zeros(shape, np.float32)
    result[tuple(slice(size) for size in values.shape)] = values
    return result
