"""Least and most of every number in a package: what keeps products of sizes far from overflow."""

from __future__ import annotations

from stic.runtime.format import BLOCK, CACHES, FEATURES, KINDS, MACHINES, NORMS, POOLINGS, ROW_TYPES

# A package beyond them is refused. Fields of HEADER, MODEL and SHAPE by their names, and what stands below them.
LIMITS = {
    "machine": len(MACHINES) - 1,
    "features": (1 << len(FEATURES)) - 1,
    "nested": 1,
    "row_stride": 1 << 16,
    "row_type": len(ROW_TYPES) - 1,
    "table_resident": 1,
    "threads": 64,
    "lanes": 16,
    "row_lanes": 16,
    "request_bytes": 1 << 24,
    "stack_bytes": 1 << 23,
    "files": 16,
    "shapes": 32,
    "blocks": 512,
    "dense": 8,
    "plans": 64,
    "hidden": 1 << 14,
    "vocabulary": 1 << 22,
    "max_length": 1 << 17,
    "chunk": 4096,
    "causal": 1,
    "types": 64,
    "pooling": len(POOLINGS) - 1,
    "normalize": 1,
    "output_features": 1 << 22,
    "norm": len(NORMS) - 1,
    "cache": len(CACHES) - 1,
    "rotaries": 4,
    "rotary_features": 1024,
    "kind": len(KINDS) - 1,
    "slices": 256,
    "heads_per_slice": 256,
    "key_heads_per_slice": 256,
    "head_dim": 1024,
    "neurons_per_slice": 1 << 16,
    "gated": 1,
    "rows_per_slice": 1 << 16,
    "dense_features": 1 << 16,  # into and out of a linear map of the head
    "extents": 1 << 20,  # of all plans together
    "columns": 1 << 16,  # of a matrix in a store with groups
    "outlier_columns": 1 << 12,  # of one without: 16 rows of them are what an outlier's position spans
    "record_bytes": (1 << 31) - 1,
}
# The least of these; that of the others is 0.
LEAST = {
    "threads": 1,
    "lanes": 1,
    "request_bytes": BLOCK,
    "stack_bytes": 1 << 14,  # PTHREAD_STACK_MIN of glibc on x86-64
    "files": 5,
    "shapes": 1,
    "blocks": 1,
    "plans": 1,
    "hidden": 1,
    "vocabulary": 1,
    "max_length": 1,
    "chunk": 1,
    "output_features": 1,
    "slices": 1,
}
