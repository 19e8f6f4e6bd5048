"""runtime/src/kernels.h declares const exactly what no kernel of any target writes to."""

import re
from pathlib import Path
from typing import Any

import pytest

from stic.schedules.rule import kernels_for
from stic.schedules.shape import KernelShape
from stic.targets.target import load, names

TEXT = (Path(__file__).resolve().parents[2] / "runtime" / "src" / "kernels.h").read_text()
PROTOTYPES = {
    name: [argument.strip().startswith("const ") for argument in arguments.split(",") if "*" in argument]
    for name, arguments in re.findall(r"void \(\*(\w+)(?:\[9\])?\)\(([^)]*)\);", TEXT)
}
SHAPE = KernelShape(64, 16, "gelu", 1e-12, 1e-12)


def read_only(function: Any) -> list[bool]:
    """For each buffer that a kernel is given, whether it only reads it."""
    text = function.script()
    written = set(re.findall(r"^\s*(\w+)\[.*?\] = ", text, re.M))
    held = re.findall(r"(\w+) = T\.decl_buffer\([^\n]*data=(\w+)", text)
    given = re.findall(r"(\w+): T\.handle", text)
    return [all(name not in written for name, data in held if data == each) for each in given]


@pytest.mark.parametrize("name", names())
def test_const_is_what_kernels_only_read(name: str) -> None:
    for function in kernels_for(load(name), SHAPE):
        symbol = str(function.attrs["global_symbol"]).removeprefix("stic_")
        member = re.sub(r"_b\d$", "", symbol).replace("embed_f16", "embed")
        assert read_only(function) == PROTOTYPES[member], symbol
