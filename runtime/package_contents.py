"""The insides of records, embedding rows and the trunk: whatever is trusted as an index or a number, checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.checks import Check, Refuse, Rows, require, within
from stic.runtime.format import ABSENT, ACTIVATIONS, ALIGN, FULL, LEVEL_BITS, ROLES, TILE
from stic.runtime.layout import Shape, pad, record_layout
from stic.runtime.limits import LIMITS

OUTLIER = np.dtype([("position", "<u2"), ("value", "<f2")])

# r: a tensor's `name`, `at`, `bytes`; p: `trunk`, the bytes of trunk.bin.
TENSOR_CHECKS = (
    Check(
        "tensor_place",
        lambda p, r: (r.at % ALIGN == 0) & within(r.at, r.bytes, p.trunk),
        "tensor {r.name} lies outside trunk.bin",
    ),
)

# r: DENSE with the `features` that the step before gives.
DENSE_CHECKS = (
    Check(
        "head_layer",
        lambda p, r: (
            (r.columns == r.features)
            & (r.rows >= 1)
            & (r.rows <= LIMITS["dense_features"])
            & (r.activation < len(ACTIVATIONS))
        ),
        "head layer {i} takes {r.columns} features of {r.features} and gives {r.rows}",
    ),
)
HEAD_CHECKS = (
    Check(
        "head_features",
        lambda p: p.causal or p.given == p.output_features,
        "the head gives {p.given} features of {p.output_features}",
    ),
)


def tensors(facts: SimpleNamespace, blocks: NDArray[Any], dense: NDArray[Any], shapes: tuple[Shape, ...]) -> Rows:
    """The tensors of trunk.bin that the model has: `name`, `at`, `bytes`, and the `bits` of each float."""
    h, width = facts, pad(facts.hidden, TILE)
    rows = [
        ("position", h.position_at, width * (h.max_length + (h.padding != 0)), 16),
        ("token_type", h.token_type_at, width * max(h.types, 1), 16),
        ("embedding_gamma", h.embedding_gamma_at, width, 32),
        ("embedding_beta", h.embedding_beta_at, width, 32),
        ("rotary", h.rotary_at, h.rotaries * h.max_length * h.rotary_features, 32),
    ]
    for number, (block, shape) in enumerate(zip(blocks, shapes, strict=True)):  # those that are left out as well
        for role in ROLES:
            rows.append((f"{role} of block {number}", int(block[f"{role}_at"]), tensor_size(shape, role), 32))
    rows = [row for row in rows if row[1] != ABSENT]
    for number, part in enumerate(dense):
        out, columns = pad(int(part["rows"]), TILE), pad(int(part["columns"]), TILE)
        rows.append((f"weight of head layer {number}", int(part["weight_at"]), out * columns, 16))
        rows.append((f"bias of head layer {number}", int(part["bias_at"]), out, 32))
    name, at, count, bits = np.array(rows, object).reshape(-1, 4).T
    return Rows(name=name, at=at, bytes=count * bits // 8, bits=bits)


def tensor_size(shape: Shape, role: str) -> int:
    """Floats of one of ROLES of a block."""
    place = role.rsplit("_", 1)[0]
    if place in ("qkv", "up", "head"):
        return shape.slices * shape.matrix(place)[0]
    widths = {"query_norm": shape.attention_width, "key_norm": shape.key_width}
    return shape.slices * widths[place] if place in widths else shape.padded_hidden


def check_trunk(
    facts: SimpleNamespace, blocks: NDArray[Any], dense: NDArray[Any], shapes: tuple[Shape, ...], refuse: Refuse
) -> Rows:
    """Head and tensors fit together and into trunk.bin; returns the table of `tensors`.

    `facts` has the fields of HEADER and of MODEL and `trunk`, the file's bytes; `shapes` are those of `blocks`.
    """
    features = [facts.hidden, *(int(rows) for rows in dense["rows"])]
    require(DENSE_CHECKS, refuse, facts, Rows(dense, features=np.array(features[:-1], object)))
    require(HEAD_CHECKS, refuse, SimpleNamespace(**vars(facts), given=features[-1]))
    table = tensors(facts, blocks, dense, shapes)
    require(TENSOR_CHECKS, refuse, facts, table)
    return table


def check_tensors(trunk: bytes, table: Rows, refuse: Refuse) -> None:
    """Every tensor of trunk.bin holds finite numbers. `table` is that of `tensors`."""
    for name, at, size, bits in zip(table.name, table.at, table.bytes, table.bits, strict=True):
        if not np.isfinite(np.frombuffer(trunk, f"<f{bits // 8}", size * 8 // bits, at)).all():
            raise refuse("tensor_finite", f"tensor {name} of trunk.bin holds values that are NaN or infinite")


def check_record(data: bytes, level: int, shape: Shape, header: SimpleNamespace, where: str, refuse: Refuse) -> None:
    """The inside of a record whose size and CRC hold: code tables, outliers, finite weights."""
    full_bits = header.full_bits
    layout = record_layout(shape, level, bool(header.nested), full_bits, group=header.group)
    if level == FULL:
        for name, (at,) in zip(shape.matrices, layout.planes, strict=True):
            n, k = shape.matrix(name)
            if not np.isfinite(np.frombuffer(data, f"<f{full_bits // 8}", n * k, at)).all():
                raise refuse("weight_finite", f"{where}: {name} holds weights that are NaN or infinite")
        return
    for name, at in zip(shape.matrices, layout.tables, strict=True):
        if np.any(np.frombuffer(data, np.int8, 1 << LEVEL_BITS[level], at) == -128):
            raise refuse("code_table", f"{where}: a code table of {name} holds -128")
    at = layout.size
    for name, blocks_at in zip(shape.matrices, layout.blocks, strict=False):  # no blocks: no outliers
        n, k = shape.matrix(name)
        starts = np.frombuffer(data, "<u4", n // TILE + 1, blocks_at).astype(np.int64)
        at = pad(_check_outliers(data, at, starts, TILE * k, f"{where}: outliers of {name}", refuse), ALIGN)
    if at != len(data):
        raise refuse("record_end", f"{where}: the record does not end with its outliers")


def _check_outliers(data: bytes, at: int, starts: NDArray[np.int64], limit: int, where: str, refuse: Refuse) -> int:
    """One matrix's outliers, which start at `at`; returns where they end. `limit` positions are in a block."""
    count = int(starts[-1])
    if starts[0]:
        raise refuse("outlier_start", f"{where} do not start at 0")
    if np.any(np.diff(starts) < 0):
        raise refuse("outlier_blocks", f"{where} do not fit their blocks")
    if at + 4 * count > len(data):
        raise refuse("outlier_room", f"{where} are outside the record")
    entries = np.frombuffer(data, OUTLIER, count, at)
    position = entries["position"].astype(np.int64)
    block = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    if np.any(position >= limit):
        raise refuse("outlier_place", f"{where} are outside their block")
    if np.any(np.diff(block * limit + position) <= 0):
        raise refuse("outlier_order", f"{where} are out of order")
    if not np.isfinite(entries["value"]).all():
        raise refuse("outlier_finite", f"{where} are not finite numbers")
    return at + 4 * count
