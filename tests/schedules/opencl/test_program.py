"""Programs: their text, launches and conditions."""

from __future__ import annotations

import pytest

from stic.runtime.gpu_format import LAUNCH, MOST_LAUNCHES
from stic.schedules.opencl.convert import narrow, widen
from stic.schedules.opencl.program import Kernel, Launch, assemble, width_condition
from stic.schedules.opencl.quantize import quantize
from stic.schedules.opencl.rule import program_for
from stic.schedules.shape import KernelShape

SHAPE = KernelShape(40, 8, "gelu", 1e-12, 1e-12)
# What the engine starts, beside the products of every width (runtime/src/gpu_kernels.h).
OTHERS = {"quantize", "scores", "softmax", "values", "add_norm", "embed", "widen", "narrow"}
WIDTHS = [*(f"b{bits}" for bits in range(2, 9)), "f16", "f32"]


@pytest.mark.parametrize("style", ["mali", "adreno"])
def test_a_program_has_every_kernel_that_the_engine_starts(programs, style):
    program = programs(style, SHAPE, "float16", 4)
    names = [launch.name for launch in program.launches]
    products = {f"{kind}_{width}" for kind in ("gemm", "gemv") for width in WIDTHS}
    assert sorted(names) == sorted(f"stic_{name}" for name in OTHERS | products)
    assert len(names) <= MOST_LAUNCHES and max(map(len, names)) <= LAUNCH["name"].itemsize
    for launch in program.launches:
        assert f"__kernel void {launch.name}(" in program.text
        work_items = 1
        for size in launch.local:
            work_items *= size
        assert work_items <= 256 and launch.local_bytes <= 16 << 10  # what small devices allow


def test_the_text_is_the_same_every_time(programs):
    assert program_for("mali", SHAPE, "float16", 4) == programs("mali", SHAPE, "float16", 4)


def test_family_storage_and_interleave_change_the_text(programs):
    wanted = [("mali", "float16", 4), ("adreno", "float16", 4), ("mali", "float32", 8)]
    assert len({programs(style, SHAPE, storage, q).text for style, storage, q in wanted}) == len(wanted)


def test_a_text_needs_no_half_arithmetic(programs):
    assert "cl_khr_fp16 : enable" not in programs("mali", SHAPE, "float16", 4).text


def test_kernels_stand_under_their_condition():
    kernel = quantize("mali", SHAPE, "float16")
    text = assemble([kernel, widen("mali", SHAPE, "float16")]).text
    before, after = text.split("__kernel void stic_quantize")
    assert before.endswith("#if STIC_DOT != 0\n") and "#endif" in after.split("__kernel")[0]
    assert width_condition(5) == "(STIC_WIDTHS >> 5) & 1"


def test_one_name_has_one_launch():
    kernel = widen("mali", SHAPE, "float16")
    other = Kernel(kernel.function, Launch(kernel.launch.name, (64,), (64,)))
    with pytest.raises(ValueError, match="in different ways"):
        assemble([kernel, other])
    both = assemble([kernel, kernel, narrow("mali", SHAPE, "float16")])
    assert [launch.name for launch in both.launches] == ["stic_widen", "stic_narrow"]


@pytest.mark.parametrize(
    ("local", "group", "size"),
    [((), (), 0), ((1,) * 4, (1,) * 4, 0), ((8, 8), (1,), 0), ((0,), (1,), 0), ((1,), (1,), -1)],
)
def test_impossible_launches_are_refused(local, group, size):
    with pytest.raises(ValueError):
        Launch("stic_kernel", local, group, size)


def test_a_launch_covers_all_units():
    launch = Launch("stic_kernel", (2, 16), (1, 64))
    assert launch.global_size((3, 64)) == (6, 16)
    assert launch.global_size((3, 65)) == (6, 32)
