"""What stages made, as files of a dump that `--from STAGE` starts from.

What could be of another model says so: arrays carry a digest of the weights that they were made from, plans and costs
are replayed and checked as if they were new.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stic.compiler.cache.arrays import read_arrays, write_arrays
from stic.compiler.cache.digests import digest, encoder_digest
from stic.compiler.importance.file import load as load_importance
from stic.compiler.importance.file import save as save_importance
from stic.compiler.importance.measure import Importance
from stic.compiler.model import Model
from stic.compiler.offers import Quantizer
from stic.compiler.package.assembly import Materials
from stic.compiler.plan import Plan, Problem, from_json, to_json
from stic.compiler.planner.costs import Costs, costs_from_json, costs_to_json
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.sharding import ShardedModel
from stic.compiler.stage import Artifact, Made
from stic.compiler.stage_cache import UnitOrder, pack_codes, pack_order, unpack_codes, unpack_order
from stic.compiler.stages import Decided, decided
from stic.runtime.errors import InputError

T = TypeVar("T")


def _read(path: Path, read: Callable[[], T]) -> T:
    """What `read` returns; a sentence where the file is none that a dump of this model and these settings holds."""
    try:
        return read()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run once with --dump, without --from") from error
    except (InputError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be started from ({error}): run once with --dump, without --from") from error


def _order_key(made: Made) -> str:
    return digest("order", encoder_digest(made[Model]))


def _save_order(made: Made, path: Path) -> None:
    write_arrays(path, _order_key(made), pack_order(made[UnitOrder]))


def _load_order(made: Made, path: Path) -> UnitOrder:
    return _read(path, lambda: unpack_order(read_arrays(path, _order_key(made))))


def _codes_key(made: Made, quantizer: Quantizer) -> str:
    sharded = made[ShardedModel]
    return digest("codes", quantizer, sharded.geometry, encoder_digest(sharded.model))


def codes(quantizer: Quantizer) -> Artifact:
    """The quantised weights."""

    def save(made: Made, path: Path) -> None:
        write_arrays(path, _codes_key(made, quantizer), pack_codes(made[QuantizedModel]))

    def load(made: Made, path: Path) -> QuantizedModel:
        key = _codes_key(made, quantizer)
        return _read(path, lambda: unpack_codes(read_arrays(path, key), made[ShardedModel], quantizer))

    return Artifact("codes.arrays", save, load)


def _save_costs(made: Made, path: Path) -> None:
    path.write_text(json.dumps(costs_to_json(made[Costs]), indent=1), encoding="utf-8")


def _load_costs(made: Made, path: Path) -> Costs:
    return _read(path, lambda: costs_from_json(json.loads(path.read_text(encoding="utf-8"))))


def _save_plans(made: Made, path: Path) -> None:
    path.write_text(json.dumps([to_json(plan) for plan in made[Decided].plans], indent=1), encoding="utf-8")


def _load_plans(made: Made, path: Path) -> Decided:
    def read() -> tuple[Plan, ...]:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not entries:
            raise ValueError("it holds no list of plans")
        plans = tuple(from_json(entry) for entry in entries)
        store = made[Problem].store
        for plan in plans:
            fits = len(plan.layers) == store.blocks and all(
                len(layer.bits) <= slices for layer, slices in zip(plan.layers, store.slices, strict=True)
            )
            if not fits or not {b for layer in plan.layers for b in layer.bits} <= set(made[Problem].bits):
                raise ValueError(f"a plan is not for {store.blocks} blocks of {store.slices} slices")
        return plans

    return decided(made[Problem], made[Materials], _read(path, read))


ORDER = Artifact("order.arrays", _save_order, _load_order)
IMPORTANCE = Artifact(
    "importance.json",
    lambda made, path: save_importance(made[Importance], path),
    lambda made, path: _read(path, lambda: load_importance(path)),
)
COSTS = Artifact("costs.json", _save_costs, _load_costs)
PLANS = Artifact("plans.json", _save_plans, _load_plans)
