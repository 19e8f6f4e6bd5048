"""What layers cost on a GPU of which nothing was measured: an estimate from the facts of its target file."""

from __future__ import annotations

from dataclasses import replace

from stic.compiler.plan import BlockCost, ComputeCost
from stic.compiler.planner.costs import Costs, macs_of
from stic.runtime.layout import Shape
from stic.targets.gpu import Gpu

# Estimates only. Share of the multipliers' peak that kernels with weights in planes reach, codes unpacked in a cycle
# and core, kernels of a layer (four products, what quantises their inputs, attention, two norms), what starting one
# takes, and what waiting for the queue and mapping a buffer takes.
EFFICIENCY = 0.25
CODES_PER_CYCLE = 4.0
KERNELS_A_LAYER = 13
LAUNCH_US = 15.0
SYNCHRONISE_US = 100.0
VALUES_PER_CYCLE = 4  # of norms, residuals and quantisation, on one core
VALUE_OPERATIONS = 32  # on each value of a hidden state in a layer, as on the CPU


def estimate_gpu(gpu: Gpu, shape: Shape, rows: int, bits: tuple[int, ...]) -> tuple[ComputeCost, float]:
    """(costs of `shape` for inputs of `rows` tokens, hand-over in microseconds) from facts alone."""
    cycles_per_us = gpu.facts["cores"].value * gpu.facts["clock_hz"].value / 1e6

    def multiply_us(rate: str) -> float:
        return macs_of(shape, rows) / (cycles_per_us * gpu.facts[rate].value * EFFICIENCY)

    float_us = multiply_us("float_macs_per_cycle")
    coded_us = float_us if gpu.integer_dot is None else multiply_us("int8_macs_per_cycle")
    unpack_us = shape.weights / (cycles_per_us * CODES_PER_CYCLE)
    slice_us = {b: float_us if b > 8 else coded_us + unpack_us * b / 8 for b in bits}
    values_us = rows * shape.hidden * VALUE_OPERATIONS / (cycles_per_us * VALUES_PER_CYCLE)
    moved_us = 2 * 4 * rows * shape.padded_hidden * 1e6 / gpu.facts["bytes_per_s"].value  # read and written
    layer = BlockCost(KERNELS_A_LAYER * LAUNCH_US + values_us, slice_us)
    compute = ComputeCost((layer,), LAUNCH_US + values_us, 0.0)
    return compute, SYNCHRONISE_US + moved_us


def with_gpu(costs: Costs, gpu: Gpu | None, shape: Shape, rows: int, bits: tuple[int, ...]) -> Costs:
    """`costs` with those of `gpu`, estimated where they were not measured; without any where there is no GPU."""
    if gpu is None:
        return replace(costs, gpu=None, hand_over_us=0.0)
    if costs.gpu is not None:
        return costs
    compute, hand_over_us = estimate_gpu(gpu, shape, rows, bits)
    note = f"times on {gpu.name} are estimated from facts, nothing was measured"
    return replace(costs, gpu=compute, hand_over_us=hand_over_us, measured=False, notes=(*costs.notes, note))
