"""The functions that every program begins with: halves, and products of int8 by each extension."""

from __future__ import annotations

import numpy as np
import pytest

from stic.schedules.opencl.program import Launch, assemble

# What the extensions' built-in functions do, for devices without them: the specifications that preamble.cl cites.
BUILT_IN = """
#define dot_4x8packed_ss_int specified_khr
#define arm_dot_acc specified_arm
#define qcom_dot8_acc specified_qcom
int low(uint a, int i) { return (a >> (8 * i)) & 0xFF; }
int extended(uint a, int i) { int v = low(a, i); return v < 128 ? v : v - 256; }
int dot_4x8packed_ss_int(uint a, uint b) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += extended(a, i) * extended(b, i);
  return sum;
}
int arm_dot_acc(char4 a, char4 b, int acc) { return acc + dot_4x8packed_ss_int(as_uint(a), as_uint(b)); }
int qcom_dot8_acc(uint p0, uint p1, int acc) {
  for (int i = 0; i < 4; ++i) acc += FIRST(p0, i) * low(p1, i);
  return acc;
}
"""
DOTS = """
__kernel void dots(__global char4 *w, __global char4 *x, __global int *acc) {
  int i = get_global_id(0);
  acc[i] = stic_dot4(w[i], x[i], acc[i]);
}
"""
HALFS = """
__kernel void halfs(__global float *y, __global ushort *bits, __global float *back) {
  int i = get_global_id(0);
  bits[i] = stic_to_half(y[i]);
  back[i] = stic_from_half(bits[i]);
}
"""


@pytest.mark.filterwarnings("ignore:Non-empty compiler output")  # of a device that lacks the extension
@pytest.mark.parametrize(
    ("variant", "first"),
    [(1, "low"), (2, "low"), (3, "extended"), (3, "low"), (4, "low")],
    ids=["khr", "arm", "qcom-signed", "qcom-unsigned", "plain"],
)
def test_every_variant_is_the_sum_of_products(device, variant, first):
    rng = np.random.default_rng(variant)
    w, x = (rng.integers(-128, 128, (256, 4)).astype(np.int8) for _ in range(2))
    w[:4], x[0], x[1] = ((-128,), (127,), (-128,), (0,)), -128, -128
    acc = rng.integers(-(2**24), 2**24, 256).astype(np.int32)
    text = f"#define FIRST {first}\n" + BUILT_IN + assemble([]).text + DOTS
    got = device.run(text, {"DOT": variant, "WIDTHS": 0}, Launch("dots", (16,), (16,)), (256,), [w, x, acc])[2]
    np.testing.assert_array_equal(got, acc + np.sum(w.astype(np.int32) * x, axis=1))


def test_halves_by_their_bits(device):
    """Every finite half survives, and what lies between two is rounded to even."""
    bits = np.arange(0x7C00, dtype=np.uint16)
    bits = np.concatenate([bits, bits | 0x8000])
    y = bits.view(np.float16).astype(np.float32)
    y[1:-1:7] += (y[2::7] - y[1:-1:7]) / 2
    launch = Launch("halfs", (64,), (64,))
    arguments = [y, np.zeros_like(bits), np.zeros_like(y)]
    _, stored, back = device.run(assemble([]).text + HALFS, {"DOT": 0, "WIDTHS": 0}, launch, (len(y),), arguments)
    np.testing.assert_array_equal(stored, y.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(back, y.astype(np.float16).astype(np.float32))
