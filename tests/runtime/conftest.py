"""Packages of small random models, built by the compiler's own writer, for the runtime's tests."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from stic.runtime.format import HEADER

MAX_LENGTH = 40


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_package(bits, resident=..., target=..., ...)` writes a package and returns its directory.

    bits: bitwidths per layer; resident: the same shape, default 0 everywhere. Geometry and options by keyword.
    compiled=False leaves the kernels out: such a package can be read, but not run.
    """
    from stic.compiler.assembly import assemble_package, collect
    from stic.compiler.packager import write_package
    from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
    from stic.compiler.sharding import Geometry
    from stic.compiler.synthetic import synthetic
    from stic.targets.target import load

    def make(
        bits: tuple[tuple[int, ...], ...],
        resident: tuple[tuple[int, ...], ...] | None = None,
        target: str = "host",
        hidden: int = 64,
        heads: int = 4,
        head_dim: int = 16,
        ffn: int = 128,
        slices: int = 4,
        full_bits: int = 16,
        table_resident: bool = False,
        read_ahead: int = 1,
        activation: str = "gelu",
        threads: int = 2,
        lanes: int = 2,
        seed: int = 0,
        compiled: bool = True,
    ) -> Path:
        folder = tmp_path_factory.mktemp("package")
        geometry = Geometry(len(bits), hidden, heads, head_dim, ffn, slices)
        chosen = load(target)
        quantized = synthetic(geometry, activation, MAX_LENGTH, seed)
        materials = collect(quantized, full_bits, MAX_LENGTH, threads, lanes)
        held = resident or tuple(tuple(0 for _ in layer) for layer in bits)
        layers = tuple(LayerPlan(b, r) for b, r in zip(bits, held, strict=True))
        proof = Proof("heuristic", 0.0, None, 0.0)
        plan = Plan("test", layers, table_resident, read_ahead, True, Budget(), 0.0, proof)
        kernels = folder / "kernels.so"
        if compiled:
            from stic.compiler.codegen import generate

            generate(materials.kernel_shape, chosen, kernels)
        else:
            kernels.write_bytes(b"no code")
        output = folder / "model.stic"
        write_package(assemble_package(materials, plan, chosen, kernels), output)
        return output

    return make


@pytest.fixture(scope="session")
def with_header() -> Callable[..., bytes]:
    """`with_header(index, field=value, ...)`: the index with header fields changed and its checksum right again."""

    def change(index: bytes, **values: int) -> bytes:
        data = bytearray(index)
        for name, value in values.items():
            kind, at = HEADER.fields[name][:2]
            data[at : at + kind.itemsize] = value.to_bytes(kind.itemsize, "little")
        at = HEADER.fields["index_crc"][1]
        data[at : at + 4] = bytes(4)
        data[at : at + 4] = struct.pack("<I", zlib.crc32(data))
        return bytes(data)

    return change


@pytest.fixture(scope="session")
def package(make_package: Callable[..., Path]) -> Path:
    """A package with every kind of shard: resident, streamed, mixed bits, full precision, and a layer left out."""
    bits = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
    resident = ((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))
    return make_package(bits, resident)
