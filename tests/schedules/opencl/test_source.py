"""The words of kernels for GPUs, and their text."""

from __future__ import annotations

import numpy as np
import pytest

from stic.schedules.opencl.program import Kernel, Launch, assemble
from stic.schedules.opencl.source import (
    barrier,
    launch,
    load_real,
    load_vector,
    lower,
    shared,
    store_real,
    store_vector,
)
from stic.schedules.tir import T, bind, kernel, loop, splat, store, when

DEFINES = {"DOT": 0, "WIDTHS": 0}


@pytest.mark.parametrize("storage", ("float16", "float32"))
@pytest.mark.parametrize("lanes", (1, 2, 4, 8, 16))
def test_stored_values_are_read_and_rounded_from_any_index(device, storage, lanes):
    record = Launch("copy", (1,), (1,))

    def body(x, out, first) -> None:
        with launch(1, record.local):
            factor = T.float32(1.25)
            value = load_real(x, first, lanes) * (factor if lanes == 1 else splat(factor, lanes))
            store_real(out, first + 1, value, lanes)

    arguments = [("x", storage), ("out", storage), ("first", "scalar")]
    copy = Kernel(kernel("copy", arguments, body), record)
    x = np.random.default_rng(0).standard_normal(40).astype(storage)
    out = device.run(assemble([copy]).text, DEFINES, record, (1,), [x, np.zeros_like(x), 3])[1]
    expected = np.zeros_like(x)
    expected[4 : 4 + lanes] = x[3 : 3 + lanes].astype(np.float32) * np.float32(1.25)
    np.testing.assert_array_equal(out, expected)


def test_items_of_a_group_share_local_memory(device):
    record = Launch("turn", (4, 2), (8, 1), local_bytes=4 * 8)

    def body(x, out) -> None:
        with launch(2, record.local) as ((group, row), (item, half)), shared((8, "int32")) as (room,):
            at = bind(half * 4 + item)
            store(room, at, x[(row * 3 + group) * 8 + at], 1)
            barrier()
            with when(item % 2 == 0):
                pair = load_vector(room, 6 - at, 2)
                store_vector(out, (row * 3 + group) * 8 + at, pair, 2)

    turn = Kernel(kernel("turn", [("x", "int32"), ("out", "int32")], body), record)
    x = np.arange(48, dtype=np.int32)
    out = device.run(assemble([turn]).text, DEFINES, record, (24, 2), [x, np.zeros_like(x)])[1]
    np.testing.assert_array_equal(out.reshape(-1, 4, 2), x.reshape(-1, 4, 2)[:, ::-1])


def test_text_is_one_kernel_with_arguments_in_order_and_no_extension():
    def body(x, half, count) -> None:
        with launch(1, (64,)) as ((group,), (item,)), loop(count) as i:
            store_real(half, (group * 64 + item) * count + i, load_real(x, i, 1), 1)

    arguments = [("zebra", "float32"), ("ape", "float16"), ("count", "scalar")]
    text = lower(kernel("stic_copy", arguments, body))
    assert text == lower(kernel("stic_copy", arguments, body))  # the same every time
    parameters = "__global float* restrict zebra, __global half* restrict ape, int count"
    assert text.startswith(f"__kernel void stic_copy({parameters})")
    assert text.count("__kernel") == 1 and "EXTENSION" not in text and text.endswith("}\n")


def test_named_values_are_written_once():
    def body(x, out) -> None:
        with launch(1, (1,)) as ((group,), _):
            value = bind(x[group * 7 + 3] * 5)
            store(out, group, value * value + value, 1)

    assert lower(kernel("name", [("x", "int32"), ("out", "int32")], body)).count("x[") == 1
