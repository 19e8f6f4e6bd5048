"""Embedding rows of either type: engine, GPU and reference agree, and float16 is nearer to the model's own table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler.package.trunk import build_embeddings
from stic.runtime.errors import InputError, PackageError
from stic.runtime.format import BLOCK, ROW_TYPES
from stic.runtime.layout import row_bytes, row_stride
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session

Change = Callable[..., bytes]
OWN = tuple(kind for kind in ROW_TYPES if kind != "tied")  # of rows that an encoder may have
BITS = ((16, 4, 4, 2), (4, 4, 2))
LENGTHS = (1, 7, 16, 17, 40)
CASES: dict[str, dict[str, Any]] = {
    "streamed": dict(bits=BITS),
    "resident": dict(bits=BITS, table_resident=True),
    "32 bits": dict(bits=((32,) * 4,) * 2, full_bits=32),
    "padding": dict(bits=BITS, padding=1),
    "family": dict(bits=((4, 4), (3, 2)), also=((((2, 2), (2, 2)), ((2, 2), (2, 0))),)),
    "odd hidden": dict(bits=((8, 3), (4, 4)), hidden=39, heads=2, head_dim=20, ffn=50, slices=2, activation="relu"),
    "a row of a block and more": dict(bits=((4,),), hidden=2050, heads=1, head_dim=16, ffn=32, slices=1),
}


def row_of(row: np.ndarray) -> np.ndarray:
    """What float16 keeps of a row."""
    return row.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("hidden", [1, 2, 3, 16, 39, 384, 768, 2046, 2047, 2050, 4096])
@pytest.mark.parametrize("row_type", OWN)
def test_rows_as_specified(row_type: str, hidden: int) -> None:
    stride, size = row_stride(hidden, row_type), row_bytes(hidden, row_type)
    assert size <= stride and (BLOCK % stride == 0 or stride % BLOCK == 0) and stride < max(64, 2 * size + BLOCK)
    word = np.random.default_rng(hidden).standard_normal((5, hidden), np.float32)
    rows = build_embeddings(word, row_type)
    assert len(rows) % BLOCK == 0 and len(rows) >= 5 * stride
    if row_type == "float16":
        assert size == -(-2 * hidden // 4) * 4 + 4
        got = np.stack([np.frombuffer(rows, "<f2", hidden, i * stride) for i in range(5)])
        np.testing.assert_array_equal(got, word.astype(np.float16))
    else:
        assert rows == build_embeddings(word) and stride == row_stride(hidden)


@pytest.mark.parametrize("hidden", [39, 576, 2048, 4096])
@pytest.mark.parametrize("row_type", OWN)
def test_rows_of_decoders_lie_close_together(row_type: str, hidden: int) -> None:
    word = np.random.default_rng(hidden).standard_normal((50, hidden), np.float32)
    stride, packed = (row_stride(hidden, row_type, packed) for packed in (False, True))
    apart, close = (build_embeddings(word, row_type, packed) for packed in (False, True))
    assert packed - row_bytes(hidden, row_type) < 8 and len(close) - 50 * packed < BLOCK
    for n in range(50):
        assert close[n * packed :][:packed] == apart[n * stride :][:packed]


@pytest.mark.parametrize(("value", "fits"), [(65504.0, True), (65519.0, True), (65520.0, False), (1e9, False)])
def test_values_beyond_float16(value: float, fits: bool) -> None:
    word = np.full((2, 4), 1.0, np.float32)
    word[1, 2] = -value
    build_embeddings(word)
    if fits:
        assert np.isfinite(np.frombuffer(build_embeddings(word, "float16"), "<f2", 4, row_stride(4, "float16"))).all()
    else:
        with pytest.raises(InputError, match="--embedding-bits 8"):
            build_embeddings(word, "float16")


@pytest.mark.parametrize("case", CASES)
def test_engine_gives_the_references_answer(case: str, make_package: Callable[..., Path]) -> None:
    path = make_package(**CASES[case], row_type="float16")
    package = Package.open(path)
    package.verify()
    assert package.row_type == "float16"
    rng, reference = np.random.default_rng(2), Reference(package)
    with Session(path) as session:
        for length in LENGTHS:
            ids = rng.integers(0, int(package.model["vocabulary"]), length)
            np.testing.assert_allclose(session.run(ids), reference.run(ids), rtol=1e-5, atol=2e-6)


def test_the_tables_own_values(make_package: Callable[..., Path]) -> None:
    from stic.compiler.device.synthetic import synthetic
    from stic.compiler.sharding import Geometry

    word = synthetic(Geometry(1, 64, 4, 16, 128, 4), "gelu", 40).sharded.model.embeddings.word
    ids = np.array([0, 5, 8191, 5])
    packages = {kind: Package.open(make_package(((4,) * 4,), compiled=False, row_type=kind)) for kind in OWN}
    values, scales = packages["float16"].embedding_rows(ids)
    assert scales is None
    np.testing.assert_array_equal(values.astype(np.float32), row_of(word[ids]))
    codes, scales = packages["int8"].embedding_rows(ids)
    assert codes.dtype == np.int8 and scales is not None
    error = np.abs(codes * scales[:, None] - word[ids]).max()
    assert np.abs(values.astype(np.float32) - word[ids]).max() < error / 10


def test_what_rows_take_is_claimed(make_package: Callable[..., Path]) -> None:
    for resident in (False, True):
        options: dict[str, Any] = dict(bits=BITS, compiled=False, table_resident=resident)
        narrow, wide = (Package.open(make_package(**options, row_type=kind)) for kind in OWN)
        stride = [int(package.header["row_stride"]) for package in (narrow, wide)]
        assert stride == [row_stride(64, kind) for kind in OWN] and stride[1] == 2 * stride[0]
        assert wide.regions["rows"][1] == wide.max_length * stride[1]
        tables = [package.regions["table"][1] for package in (narrow, wide)]
        assert tables == ([8192 * n for n in stride] if resident else [0, 0])
        more = wide.entry.claimed_bytes - narrow.entry.claimed_bytes
        assert more >= tables[1] - tables[0]  # rows of the input may lie where something else lies later


def test_a_damaged_row(make_package: Callable[..., Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(make_package(BITS, row_type="float16"), tmp_path / "copy.stic"))
    stride = int(Package.open(copy).header["row_stride"])
    with (copy / "embeddings.bin").open("r+b") as file:
        file.seek(6 * stride - (stride - row_bytes(64, "float16")) - 6)  # token 5's last value
        file.write(b"\x55\xaa")
    with Session(copy) as session:
        session.run([4, 6])
        with pytest.raises(PackageError, match="token 5"):
            session.run([4, 5])
    with pytest.raises(PackageError, match="token 5"):
        Package.open(copy).embedding_rows(np.array([5]))


@pytest.mark.parametrize(
    ("change", "ours", "engines"),
    [
        (dict(row_type=3), "row_type is 3", "row_type is 3"),
        (dict(row_type=2), "tied to 64 of a head", "tied to 64 of a head"),
        (dict(row_type=(1 << 32) - 1), "row_type is", "row_type is"),
        (dict(row_type=1), "does not fit row_stride 128", "does not fit row_stride 128"),
    ],
)
def test_headers_that_make_no_sense(
    change: dict[str, int],
    ours: str,
    engines: str,
    make_package: Callable[..., Path],
    tmp_path: Path,
    with_header: Change,
) -> None:
    copy = Path(shutil.copytree(make_package(BITS), tmp_path / "copy.stic"))
    (copy / "index.bin").write_bytes(with_header((copy / "index.bin").read_bytes(), **change))
    with pytest.raises(PackageError, match=ours):
        Package.open(copy)
    with pytest.raises(PackageError, match=engines):
        Session(copy)


@pytest.mark.usefixtures("opencl")
@pytest.mark.parametrize("places", [("gpu",) * 2 + ("cpu", "gpu"), ("cpu", "gpu", "cpu", "gpu")])
def test_layers_on_a_gpu(make_gpu_package: Callable[..., Path], places: tuple[str, ...]) -> None:
    path = make_gpu_package(row_type="float16", places=places)
    reference = Reference(Package.open(path), gpu_arithmetic="float")
    with Session(path, gpu="required", gpu_arithmetic="float") as session:
        for length in LENGTHS:
            ids = np.arange(length) * 31 % 8192
            np.testing.assert_allclose(session.run(ids), reference.run(ids), rtol=0, atol=3e-2)
