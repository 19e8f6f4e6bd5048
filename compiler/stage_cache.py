"""Stages whose results are kept, so that another budget for the same model, or the same command, costs seconds.

The order of units and the codes depend on the weights and the calibration text; a plan on the whole problem. Keys
are digests of just that, and of the code that computes it (`import_closure`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.cache.arrays import Arrays, Cursor, Note, joined, remember
from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest, encoder_digest, follows
from stic.compiler.importance.contributions import Order, unit_order
from stic.compiler.importance.examples import Batch
from stic.compiler.model import Model
from stic.compiler.offers import Quantizer
from stic.compiler.plan import Plan, Problem, dumps, from_json
from stic.compiler.planner import solve
from stic.compiler.quantization.moments import Ids, input_moments
from stic.compiler.quantization.quantize import Outliers, QuantizedMatrix, QuantizedModel, quantize
from stic.compiler.sharding import ShardedModel, shard
from stic.runtime.format import LEVEL_BITS, MATRICES

# The modules that compute what is kept; how it lies in a file is in this module.
_ORDERS = (unit_order.__module__,)
_SHARDS = (shard.__module__,)
_QUANTIZES = (quantize.__module__, input_moments.__module__)
_PLANS = (solve.__module__,)


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """The order of heads and of neurons in every layer, (layers, units) each; None: as they are."""

    heads: Order | None
    neurons: Order | None


def ordered_units(model: Model, batches: Sequence[Batch], folder: Path, note: Note) -> UnitOrder:
    """`contributions.unit_order`, kept in `folder`."""
    code, inputs = code_of(*_ORDERS, alone=(__name__,)), [(b.ids, b.mask, b.types) for b in batches]
    key = digest(code, encoder_digest(model), inputs)
    return remember(folder, key, lambda: UnitOrder(*unit_order(model, batches)), pack_order, unpack_order, note)


def pack_order(order: UnitOrder) -> Arrays:
    """An order as arrays; none for that of units as they are."""
    return {} if order.heads is None else {"heads": np.asarray(order.heads), "neurons": np.asarray(order.neurons)}


def unpack_order(arrays: Arrays) -> UnitOrder:
    """Inverse of `pack_order`."""
    return UnitOrder(arrays["heads"], arrays["neurons"]) if arrays else UnitOrder(None, None)


def sharded_model(model: Model, slices: int | None, order: UnitOrder) -> ShardedModel:
    """`sharding.shard`, whose weights are those of `model` in another order: keys need not read them again."""
    sharded = shard(model, slices, order.heads, order.neurons)
    follows(sharded.model, code_of(*_SHARDS), encoder_digest(model), sharded.head_order, sharded.neuron_order)
    return sharded


def quantized_model(
    sharded: ShardedModel,
    quantizer: Quantizer,
    sequences: Sequence[Ids],
    folder: Path,
    progress: Callable[[int, int], None],
    note: Note,
) -> QuantizedModel:
    """`quantize` by the input moments of `sequences` (gobo needs none), kept in `folder`."""
    inputs = sequences if quantizer == "nested" else ()
    code = code_of(*_QUANTIZES, alone=(__name__,))
    key = digest(code, quantizer, sharded.geometry, encoder_digest(sharded.model), inputs)

    def compute() -> QuantizedModel:
        moments = input_moments(sharded, inputs) if quantizer == "nested" else None
        return quantize(sharded, quantizer, moments, progress=progress)

    def unpack(arrays: Arrays) -> QuantizedModel:
        return unpack_codes(arrays, sharded, quantizer)

    quantized = remember(folder, key, compute, pack_codes, unpack, note)
    follows(quantized, key)
    return quantized


def solved(
    problem: Problem, planner: str, bits: int | None, time_limit_s: float, gap: float, folder: Path, note: Note
) -> Plan:
    """`planner.solve`, kept in `folder` unless the time limit ended the search: then the next one may find more."""
    key = digest(code_of(*_PLANS, alone=(__name__,)), problem, planner, bits, time_limit_s, gap)

    def pack(plan: Plan) -> Arrays | None:
        late = plan.proof.status == "feasible" and not plan.proof.near_enough
        return None if late else {"plan": np.frombuffer(dumps(plan).encode(), np.uint8)}

    def unpack(arrays: Arrays) -> Plan:
        return from_json(json.loads(arrays["plan"].tobytes()))

    def compute() -> Plan:
        return solve(problem, planner, bits, time_limit_s, enough=gap)

    return remember(folder, key, compute, pack, unpack, note)


def pack_codes(model: QuantizedModel) -> Arrays:
    """All matrices end to end, layer by layer, slice by slice."""
    matrices = [part[name] for layer in model.matrices for part in layer for name in MATRICES["layer"]]
    return {
        "codes": joined(m.codes[bits] for m in matrices for bits in sorted(m.codes)),
        "tables": joined(m.luts[bits] for m in matrices for bits in LEVEL_BITS),
        "centroids": joined(m.centroids[bits] for m in matrices for bits in LEVEL_BITS),
        "scales": joined(m.scale for m in matrices),
        "outliers": np.array([len(m.outliers) for m in matrices]),
        "rows": joined(m.outliers.rows for m in matrices),
        "columns": joined(m.outliers.columns for m in matrices),
        "values": joined(m.outliers.values for m in matrices),
    }


def unpack_codes(arrays: Arrays, sharded: ShardedModel, quantizer: Quantizer) -> QuantizedModel:
    g, cursor = sharded.geometry, Cursor(arrays)
    widths = LEVEL_BITS[-1:] if quantizer == "nested" else LEVEL_BITS

    def tables(name: str) -> Mapping[int, NDArray[Any]]:
        return {bits: cursor.take(name, 1 << bits) for bits in LEVEL_BITS}

    def matrix(name: str) -> QuantizedMatrix:
        n, k = g.matrix_shape(name)
        count = int(cursor.take("outliers", 1)[0])
        outliers = Outliers(*(cursor.take(part, count) for part in ("rows", "columns", "values")))
        codes = {bits: cursor.take("codes", n, k) for bits in widths}
        return QuantizedMatrix(codes, tables("tables"), cursor.take("scales", n), outliers, tables("centroids"))

    layers = tuple(
        tuple({name: matrix(name) for name in MATRICES["layer"]} for _ in range(g.slices)) for _ in range(g.layers)
    )
    cursor.close()
    return QuantizedModel(sharded, quantizer, layers)
