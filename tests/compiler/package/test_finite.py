"""What a reader would refuse, NaN and infinite numbers, never gets into a package: the compiler names where it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler.model import Dense, Head, Linear
from stic.compiler.package.assembly import Planned, assemble_package, collect
from stic.compiler.package.writer import write_package
from stic.compiler.quantization.quantize import QuantizedModel
from stic.runtime.errors import InputError
from stic.targets.target import load
from tests.compiler.packaging import BITS, MAX_LENGTH, RESIDENT, materials_for, plan_of

BAD = (np.nan, np.inf, -np.inf)
LARGE = 70_000.0  # beyond float16


def with_one(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[-1] = value
    return changed


def with_model(quantized: QuantizedModel, **parts: Any) -> QuantizedModel:
    return replace(quantized, sharded=replace(quantized.sharded, model=replace(quantized.sharded.model, **parts)))


def with_norm(quantized: QuantizedModel, value: float) -> QuantizedModel:
    table = quantized.sharded.model.embeddings
    norm = replace(table.norm, beta=with_one(table.norm.beta, value))
    return with_model(quantized, embeddings=replace(table, norm=norm))


def with_table(name: str) -> Callable[[QuantizedModel, float], QuantizedModel]:
    def change(quantized: QuantizedModel, value: float) -> QuantizedModel:
        table = quantized.sharded.model.embeddings
        return with_model(quantized, embeddings=replace(table, **{name: with_one(getattr(table, name), value)}))

    return change


def with_bias(quantized: QuantizedModel, value: float) -> QuantizedModel:
    layers = quantized.sharded.model.layers
    last = replace(layers[-1], output=replace(layers[-1].output, bias=with_one(layers[-1].output.bias, value)))
    return with_model(quantized, layers=(*layers[:-1], last))


def with_head(part: str) -> Callable[[QuantizedModel, float], QuantizedModel]:
    def change(quantized: QuantizedModel, value: float) -> QuantizedModel:
        linear = Linear(np.ones((2, 64), np.float32), np.zeros(2, np.float32))
        linear = replace(linear, **{part: with_one(getattr(linear, part), value)})
        return with_model(quantized, head=Head("mean", (Dense(linear, "none"),)))

    return change


def with_scale(quantized: QuantizedModel, value: float) -> QuantizedModel:
    shards = [list(layer) for layer in quantized.matrices]
    matrix = shards[1][2]["up"]
    shards[1][2] = {**shards[1][2], "up": replace(matrix, scale=with_one(matrix.scale, value))}
    return replace(quantized, matrices=tuple(tuple(layer) for layer in shards))


CASES = {
    "the embeddings' norm": (with_norm, BAD),
    "the position table": (with_table("position"), (*BAD, LARGE)),
    "the word embedding of token": (with_table("word"), BAD),
    "layer 1, the bias of out": (with_bias, BAD),
    "layer 1, the scale of up": (with_scale, BAD),
    "the head's layer 0, its weight": (with_head("weight"), (*BAD, -LARGE)),
    "the head's layer 0, its bias": (with_head("bias"), BAD),
}


@pytest.mark.parametrize(("where", "value"), [(name, value) for name, (_, values) in CASES.items() for value in values])
def test_numbers_that_are_none_are_named(where: str, value: float) -> None:
    change = CASES[where][0]
    quantized = change(materials_for("nested").quantized, value)
    with pytest.raises(InputError, match=where):
        collect(quantized, 16, MAX_LENGTH, 2, 2)


def test_weights_that_float16_cannot_hold(tmp_path: Path) -> None:
    quantized = materials_for("nested").encoder
    layers = quantized.sharded.model.layers
    first = replace(layers[0], ffn_in=replace(layers[0].ffn_in, weight=np.full_like(layers[0].ffn_in.weight, LARGE)))
    kernels = tmp_path / "kernels.so"
    kernels.write_bytes(b"no code")
    large = with_model(quantized, layers=(first, *layers[1:]))
    materials = collect(large, 16, MAX_LENGTH, 2, 2)
    parts = assemble_package(materials, (Planned(plan_of(BITS, RESIDENT)),), load("host"), kernels)
    with pytest.raises(InputError, match="layer 0, up holds values"):
        write_package(parts, tmp_path / "model.stic")
    assert not (tmp_path / "model.stic").exists()
