"""The engine's functions on this machine: what calling them brings along. Needs apache-tvm."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

pytest.importorskip("tvm_ffi", reason="needs apache-tvm")


@pytest.mark.parametrize("torch_first", [False, True])
def test_the_ffi_brings_no_torch_along_and_leaves_it_importable(torch_first: bool) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    code = (
        f"import sys\n{'import torch' if torch_first else ''}\n"
        "from stic.targets import host; host._ffi()\n"
        "print('torch' in sys.modules, 'tvm' in sys.modules)\n"
        "import torch; print(host._ffi().from_dlpack(torch.ones(3)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{torch_first} False\n(3,)\n"
