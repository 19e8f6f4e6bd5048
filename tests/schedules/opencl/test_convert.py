"""stic_widen and stic_narrow, which TVM's dlight schedules."""

from __future__ import annotations

import numpy as np
import pytest

from stic.schedules.opencl.convert import narrow, widen
from stic.schedules.opencl.program import assemble
from stic.schedules.shape import KernelShape

SHAPE = KernelShape(16, 8, "gelu", 1e-12, 1e-12)
COUNTS = [pytest.param(48, id="tiny"), pytest.param(16, id="16"), pytest.param(4096, id="4096")]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize("style", ["mali", "adreno"])
def test_narrow_rounds_to_nearest_and_widen_is_exact(device, style, storage, count):
    y = (np.random.default_rng(count).standard_normal(count + 3) * 100).astype(np.float32)
    y[:3] = 65504, 2.0**-24, 1 + 2.0**-11  # the greatest, the least, and a half between two
    kernels = [narrow(style, SHAPE, storage), widen(style, SHAPE, storage)]
    text, defines = assemble(kernels).text, {"DOT": 0, "WIDTHS": 0}
    x = np.full(count + 3, 7, storage)
    stored = device.run(text, defines, kernels[0].launch, (count,), [y, x, count])[1]
    np.testing.assert_array_equal(stored[:count], y[:count].astype(storage))
    assert (stored[count:] == 7).all()  # the last work-group has more items than elements are left
    back = device.run(text, defines, kernels[1].launch, (count,), [stored, np.zeros_like(y), count])[1]
    np.testing.assert_array_equal(back[:count], stored[:count].astype(np.float32))
    assert not back[count:].any()


def test_the_launch_is_the_schedules():
    launch = widen("mali", SHAPE, "float16").launch
    assert launch.local == launch.group == (256,)
    assert launch.global_size((48,)) == (256,) and launch.global_size((257,)) == (512,)
