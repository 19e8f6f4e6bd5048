"""What the model of a package is, and how its blocks are cut, checked; the engine's package_model.c does the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.checks import Check, Refuse, Rows, check_bounds, fields, require
from stic.runtime.format import ABSENT, FLAGS, KINDS, LEVELS, NORMS, ROLES, ROW_TYPES, Kind
from stic.runtime.layout import Shape, record_layout, row_bytes, straddles
from stic.runtime.limits import LIMITS

# p: the fields of HEADER and of MODEL.
MODEL_CHECKS = (
    Check("multiplier", lambda p: np.isfinite(p.embedding_multiplier), "the embedding's multiplier is no number"),
    Check(
        "row_tied",
        lambda p: (
            ROW_TYPES[p.row_type] != "tied"
            or (p.causal and p.row_stride == p.table_resident == 0 and p.vocabulary == p.output_features)
        ),
        "its rows are tied to {p.output_features} of a head, with {p.vocabulary} tokens or a table of their own",
    ),
    Check(
        "row_fits",
        lambda p: ROW_TYPES[p.row_type] == "tied" or p.row_stride >= row_bytes(p.hidden, ROW_TYPES[p.row_type]),
        "a row does not fit row_stride {p.row_stride}",
    ),
    Check(
        "padding",
        lambda p: p.padding <= p.vocabulary,
        "padding is {p.padding}, one more than the token, of {p.vocabulary} tokens",
    ),
    Check(
        "rotary_pairs",
        lambda p: p.rotary_features % 2 == 0 and (p.rotaries == 0) == (p.rotary_features == 0),
        "it has {p.rotaries} rotary tables of {p.rotary_features} features",
    ),
    Check(
        "encoder",
        lambda p: (
            p.causal
            or (
                p.chunk == p.max_length
                and p.group == p.rotaries == p.cache == 0
                and NORMS[p.norm] == "layer"
                and p.embedding_multiplier == 1
            )
        ),
        "an encoder has what decoders have",
    ),
    Check(
        "decoder",
        lambda p: (
            not p.causal
            or (
                p.chunk <= p.max_length
                and p.group > 0
                and p.cache > 0
                and p.types == p.padding == p.pooling == p.normalize == p.dense == p.gpu_at == 0
            )
        ),
        "a decoder has what encoders have, or lacks a cache or groups",
    ),
    Check(
        "row_straddles",
        lambda p: p.causal or not straddles(p.row_stride),
        "row_stride {p.row_stride} makes rows straddle blocks",
    ),
    Check(
        "model_tensors",
        lambda p: (
            p.token_type_at == p.embedding_gamma_at == p.embedding_beta_at == ABSENT
            and (p.rotary_at == ABSENT) == (p.rotaries == 0)
            if p.causal
            else p.rotary_at == ABSENT
            and ABSENT not in (p.position_at, p.token_type_at, p.embedding_gamma_at, p.embedding_beta_at)
        ),
        "the model has a tensor of another kind of model, or lacks one",
    ),
)

# Fields of SHAPE that a kind has, all at least 1; `gated` may be 0.
_SIZES: dict[Kind, tuple[str, ...]] = {
    "layer": ("heads_per_slice", "key_heads_per_slice", "head_dim", "neurons_per_slice"),
    "attention": ("heads_per_slice", "key_heads_per_slice", "head_dim"),
    "feed_forward": ("neurons_per_slice",),
    "vocabulary": ("rows_per_slice",),
}
_ALL_SIZES = ("heads_per_slice", "key_heads_per_slice", "head_dim", "neurons_per_slice", "rows_per_slice")


def _has_kind(shape: SimpleNamespace) -> bool:
    kind = KINDS[shape.kind]
    if any((getattr(shape, name) > 0) != (name in _SIZES[kind]) for name in _ALL_SIZES):
        return False
    if shape.gated and kind != "feed_forward":
        return False
    heads, keys = int(shape.heads_per_slice), int(shape.key_heads_per_slice)
    return heads == keys if kind == "layer" else kind != "attention" or heads % keys == 0


# p: the fields of HEADER and of MODEL; r: SHAPE with the most `columns` of a matrix and `bytes` of a record.
SHAPE_CHECKS = (
    Check(
        "shape_columns",
        lambda p, r: r.columns <= LIMITS["columns" if p.group else "outlier_columns"],
        "a matrix of shape {i} has {r.columns} columns, more than outliers or kernels can name",
    ),
    Check("shape_record", lambda p, r: r.bytes <= LIMITS["record_bytes"], "a record of shape {i} is larger than 2 GiB"),
)


def _linear(*names: str) -> set[str]:
    return {f"{name}_{part}" for name in names for part in ("scale", "bias")}


def _norms(*names: str) -> set[str]:
    return {f"{name}_{part}" for name in names for part in ("gamma", "beta")}


# What a block of a kind has in the trunk, and what it may have.
_REQUIRED: dict[Kind, set[str]] = {
    "layer": _linear("qkv", "out", "up", "down") | _norms("post", "attention"),
    "attention": {"qkv_scale", "out_scale"},
    "feed_forward": {"up_scale", "down_scale"},
    "vocabulary": {"head_scale"},
}
_OPTIONAL: dict[Kind, set[str]] = {
    "layer": set(),
    "attention": _linear("qkv", "out") | _norms("input", "branch", "post", "query_norm", "key_norm"),
    "feed_forward": _linear("up", "down") | _norms("input", "branch", "post"),
    "vocabulary": _linear("head") | _norms("input"),
}


def _has_tensors(norm: str, block: SimpleNamespace, kind: Kind) -> bool:
    present = {role for role in ROLES if getattr(block, f"{role}_at") != ABSENT}
    if not _REQUIRED[kind] <= present <= _REQUIRED[kind] | _OPTIONAL[kind]:
        return False
    if ("query_norm_gamma" in present) != ("key_norm_gamma" in present):
        return False
    for role in present:
        if role.endswith("_beta"):
            head = role.startswith(("query_norm", "key_norm"))
            layered = "layer_head_norm" in block.flagged if head else norm == "layer"
            if not layered or f"{role[:-5]}_gamma" not in present:
                return False
    return True


def _flags_fit(block: SimpleNamespace) -> bool:
    follows = block.kind == "feed_forward" and block.before == "attention"
    normed = bool(block.query_norm_gamma_at != ABSENT)
    known = bool(block.flags < 1 << len(FLAGS))
    cut = block.cut
    used = (cut.heads_per_slice * cut.head_dim, cut.key_heads_per_slice * cut.head_dim)
    whole = used == (cut.attention_width, cut.key_width)  # no padding among the heads
    fits = {"parallel": follows, "whole_head_norm": normed and whole, "layer_head_norm": normed}
    return known and all(fits[name] for name in block.flagged)


# p: the fields of HEADER and of MODEL with those of one BLOCK_ENTRY, whose shape is `cut`, of `kind`; `flagged` are its
# flags by name, `before` is the kind of the block before it, `last` says whether none follows.
BLOCK_CHECKS = (
    Check(
        "block_order",
        lambda p: p.kind != "layer" and (p.kind == "vocabulary") == p.last if p.causal else p.kind == "layer",
        "block {p.number} is of kind {p.kind}, which has no place there",
    ),
    Check("block_flags", _flags_fit, "block {p.number} has flags {p.flags}, which do not go with its kind"),
    Check(
        "block_attention",
        lambda p: (
            p.window <= p.max_length
            and p.rotary <= p.rotaries
            and (p.kind == "attention" or p.window == p.rotary == 0)
            and (p.rotary == 0 or p.rotary_features <= p.cut.head_dim)
        ),
        "block {p.number} has a window of {p.window} tokens and rotary table {p.rotary}",
    ),
    Check(
        "block_softcap",
        lambda p: (
            np.isfinite(p.softcap) and p.softcap >= 0 and (not p.softcap or p.kind in ("attention", "vocabulary"))
        ),
        "block {p.number} has a softcap of {p.softcap}",
    ),
    Check(
        "block_tensors",
        lambda p: _has_tensors(NORMS[p.norm], p, p.kind),
        "block {p.number} has a tensor too many, or lacks one",
    ),
)
# p: the fields of HEADER and of MODEL with the last block's `cut`, `cuts` in all.
WHOLE_CHECKS = (
    Check(
        "vocabulary_rows",
        lambda p: not p.causal or p.output_features <= p.cut.slices * p.cut.rows_per_slice,
        "a vocabulary of {p.output_features} rows in {p.cut.slices} slices of {p.cut.rows_per_slice}",
    ),
    Check("gpu_shape", lambda p: p.gpu_at == 0 or p.shapes == 1, "it has {p.shapes} shapes, and layers on a GPU"),
)


def read_model(facts: SimpleNamespace, shapes: NDArray[Any], blocks: NDArray[Any], refuse: Refuse) -> tuple[Shape, ...]:
    """The shape of each block, checked with all that the model is. Raises what `refuse` makes.

    `facts` has the fields of HEADER and of MODEL; `shapes` and `blocks` are the tables SHAPE and BLOCK_ENTRY.
    """
    check_bounds(facts, refuse)
    require(MODEL_CHECKS, refuse, facts)
    cuts = []
    for number, row in enumerate(shapes):
        entry = fields(row)
        check_bounds(entry, refuse)
        if not _has_kind(entry):
            raise refuse("shape_kind", f"shape {number} has sizes of another kind, or lacks one")
        given = {name: value for name, value in vars(entry).items() if name not in ("kind", "gated")}
        cuts.append(Shape(KINDS[entry.kind], facts.hidden, gated=bool(entry.gated), **given))
    columns = [max(cut.matrix(name)[1] for name in cut.matrices) for cut in cuts]
    sizes = [max(_record_bytes(cut, level, facts) for level in range(LEVELS)) for cut in cuts]
    require(SHAPE_CHECKS, refuse, facts, Rows(shapes, columns=np.array(columns, object), bytes=np.array(sizes, object)))
    found: list[Shape] = []
    for number, row in enumerate(blocks):
        entry = fields(row)
        if entry.shape >= len(cuts):
            raise refuse("block_shape", f"block {number} has shape {entry.shape} of {len(cuts)}")
        cut, before = cuts[entry.shape], found[-1].kind if found else None
        found.append(cut)
        flagged = tuple(name for bit, name in enumerate(FLAGS) if entry.flags >> bit & 1)
        more = {"number": number, "cut": cut, "kind": cut.kind, "flagged": flagged, "before": before}
        block = SimpleNamespace(**vars(facts) | vars(entry) | more, last=number == len(blocks) - 1)
        require(BLOCK_CHECKS, refuse, block)
    require(WHOLE_CHECKS, refuse, SimpleNamespace(**vars(facts), cut=found[-1]))
    return tuple(found)


def _record_bytes(cut: Shape, level: int, facts: SimpleNamespace) -> int:
    return record_layout(cut, level, bool(facts.nested), facts.full_bits, group=facts.group).size
