"""Every kernel of both families on a simulated device that watches memory, local memory and the calls of the API.

The cases with `tiny` in their id, answers and all, run again under Oclgrind. Its exit code says nothing: what it found
is in its output.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stic.schedules.shape import KernelShape

FOUND = re.compile(r"Invalid|data race|ninitialized|OCLGRIND|Oclgrind")
# pyopencl asks devices for more than OpenCL defines; nothing comes of it.
HARMLESS = re.compile(
    r"Oclgrind - OpenCL runtime error detected\n\tFunction: clGetDeviceInfo\n\tError:    CL_INVALID_VALUE\n"
    r"\tFor argument 'param_name'\n"
)
FAULTY = """
import numpy as np, pyopencl as cl
context = cl.create_some_context(interactive=False)
queue = cl.CommandQueue(context)
body = 'int i = get_local_id(0); x[8] = x[i]; y[0] = i; x[i] = y[1];'
text = '__kernel void k(__global int *x, __local int *y) { ' + body + ' }'
x = cl.Buffer(context, cl.mem_flags.READ_WRITE, 32)
cl.Program(context, text).build().k(queue, (8,), (8,), x, cl.LocalMemory(32))
queue.finish()
"""


def oclgrind(*command: str, **environment: str) -> str:
    """What a Python program and Oclgrind write, without what is harmless."""
    if shutil.which("oclgrind") is None:
        pytest.skip("needs oclgrind (Debian: oclgrind)")
    pytest.importorskip("pyopencl", reason="needs pyopencl")
    watch = ["oclgrind", "--check-api", "--data-races", "--uninitialized"]
    done = subprocess.run(
        [*watch, sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
    output = HARMLESS.sub("", done.stdout + done.stderr)
    assert done.returncode == 0, output[-4000:]
    return output


def test_oclgrind_sees_what_this_test_looks_for():
    output = oclgrind("-c", FAULTY)
    for what in ("Invalid write of size 4 at global memory", "data race", "ninitialized"):
        assert what in output


def test_no_kernel_touches_what_it_should_not(tmp_path, programs):
    folder, names = Path(__file__).parent, tmp_path / "names"
    options = ["-q", "-s", "-p", "no:cacheprovider", "-k", "tiny", f"--ignore={__file__}"]
    output = oclgrind("-m", "pytest", *options, str(folder), STIC_KERNELS_RUN=str(names))
    found = FOUND.search(output)
    assert found is None, output[max(0, found.start() - 200) : found.start() + 3000]
    assert re.search(r"^\d+ passed, \d+ deselected", output, re.MULTILINE), output[-2000:]
    program = programs("mali", KernelShape(40, 8, "gelu", 1e-12, 1e-12), "float16", 4)
    assert set(names.read_text().split()) == {launch.name for launch in program.launches}
