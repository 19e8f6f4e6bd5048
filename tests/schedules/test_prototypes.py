"""runtime/src/kernels.h declares const exactly what no kernel of any target writes to."""

import re
from pathlib import Path
from typing import Any

import pytest

from stic.schedules.rule import kernels_for
from stic.schedules.shape import DecoderShape, KernelShape
from stic.targets.target import load, names

TEXT = (Path(__file__).resolve().parents[2] / "runtime" / "src" / "kernels.h").read_text()
PROTOTYPES = {
    name: [argument.strip().startswith("const ") for argument in arguments.split(",") if "*" in argument]
    for name, arguments in re.findall(r"void \(\*(\w+)(?:\[9\])?\)\(([^)]*)\);", TEXT)
}
# Together they have every kernel.
SHAPES = (
    KernelShape(64, 16, "gelu", 1e-12, 1e-12),
    DecoderShape(64, 16, "silu", (True,), ("rms",), 1e-5, "int8", 1.0, False, True, "float16", logits_cap=4.0),
    DecoderShape(64, 16, "gelu", (False,), ("layer",), 1e-5, "float16", 1.0, True, False, "int8"),
)


def read_only(function: Any) -> list[bool]:
    """For each buffer that a kernel is given, whether it only reads it."""
    text = function.script()
    written = set(re.findall(r"^\s*(\w+)\[.*?\] = ", text, re.M))
    held = re.findall(r"(\w+) = T\.decl_buffer\([^\n]*data=(\w+)", text)
    given = re.findall(r"(\w+): T\.handle", text)
    return [all(name not in written for name, data in held if data == each) for each in given]


@pytest.mark.parametrize("shape", SHAPES, ids=["encoder", "decoder", "another decoder"])
@pytest.mark.parametrize("name", names())
def test_const_is_what_kernels_only_read(name: str, shape: KernelShape | DecoderShape) -> None:
    for function in kernels_for(load(name), shape):
        symbol = str(function.attrs["global_symbol"]).removeprefix("stic_")
        member = re.sub(r"_b\d$", "", symbol).replace("embed_f16", "embed")
        member = re.sub(r"^embed_plain_\w+$", "embed_plain", member)
        assert read_only(function) == PROTOTYPES[member], symbol
