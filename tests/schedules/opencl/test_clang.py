"""The text as it ships, read by a second OpenCL compiler: both families and every arithmetic."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from stic.schedules.shape import KernelShape

# Built-in functions that clang does not declare, as preamble.cl cites them.
DECLARATIONS = """
int __attribute__((overloadable)) arm_dot_acc(char4, char4, int);
int qcom_dot8_acc(uint, uint, int);
"""
ALL_WIDTHS = 0x301FC  # 2 to 8 bits, float16 and float32
COMMAND = (
    *("clang", "-x", "cl", "-target", "spir64-unknown-unknown", "-Xclang", "-finclude-default-header"),
    *("-fsyntax-only", "-Werror", "-Wno-ignored-pragmas", f"-DSTIC_WIDTHS={ALL_WIDTHS}"),
)
# What the engine compiles each arithmetic as: cl_khr_integer_dot_product is a feature of OpenCL C 3.0.
STANDARDS = ("CL1.2", "CL3.0", "CL1.2", "CL1.2", "CL1.2")


@pytest.mark.parametrize(("storage", "q"), [("float16", 4), ("float32", 8)])
@pytest.mark.parametrize("style", ["mali", "adreno"])
def test_every_arithmetic_is_opencl_c(tmp_path: Path, programs, style, storage, q):
    if shutil.which("clang") is None:
        pytest.skip("needs clang (Debian: clang)")
    source = tmp_path / "kernels.cl"
    source.write_text(DECLARATIONS + programs(style, KernelShape(40, 8, "gelu", 1e-12, 1e-12), storage, q).text)
    for arithmetic, standard in enumerate(STANDARDS):
        options = [f"-cl-std={standard}", f"-DSTIC_DOT={arithmetic}"]
        done = subprocess.run([*COMMAND, *options, str(source)], capture_output=True, text=True)
        assert done.returncode == 0, f"STIC_DOT={arithmetic}: {done.stderr[:3000]}"
