"""What blocks, shapes and a decoder's model must meet: both readers name the check. Needs a C compiler."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.errors import InputError, PackageError
from stic.runtime.format import ABSENT, LEVELS, REGIONS
from stic.runtime.layout import cache_bytes, record_layout
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from tests.runtime.decoder_packages import GROUP, LENGTH, SHAPES, Options, write
from tests.runtime.mutants import Original, sealed
from tests.runtime.test_mutants import Engine

NAN = struct.unpack("<I", struct.pack("<f", float("nan")))[0]
TWO, MINUS = (struct.unpack("<I", struct.pack("<f", value))[0] for value in (2.0, -1.0))
# (table, row, field, value, check); the blocks are those of SHAPES, of five shapes.
FAULTS: list[tuple[str, int, str, int, str]] = [
    ("header", 0, "group", 0, "decoder"),
    ("header", 0, "group", 32, "group"),
    ("header", 0, "dense", 1, "decoder"),
    ("header", 0, "row_stride", 64, "row_fits"),
    ("header", 0, "row_stride", 0, "row_fits"),
    ("header", 0, "row_stride", 84, "row_alignment"),
    ("header", 0, "row_type", 2, "row_tied"),
    ("header", 0, "shapes_at", 4, "table_place"),
    ("header", 0, "records_at", 1 << 20, "table_place"),
    ("header", 0, "plans", 0, "limits"),
    ("model", 0, "causal", 0, "encoder"),
    ("model", 0, "chunk", 71, "decoder"),
    ("model", 0, "cache", 0, "decoder"),
    ("model", 0, "pooling", 1, "decoder"),
    ("model", 0, "types", 2, "decoder"),
    ("model", 0, "max_length", (1 << 17) + 1, "limits"),
    ("model", 0, "embedding_multiplier", NAN, "multiplier"),
    ("model", 0, "rotary_features", 15, "rotary_pairs"),
    ("model", 0, "rotaries", 0, "rotary_pairs"),
    ("model", 0, "rotary_at", ABSENT, "model_tensors"),
    ("model", 0, "token_type_at", 0, "model_tensors"),
    ("model", 0, "output_features", 161, "vocabulary_rows"),
    ("shapes", 0, "kind", 4, "limits"),
    ("shapes", 0, "kind", 0, "shape_kind"),
    ("shapes", 0, "heads_per_slice", 5, "shape_kind"),
    ("shapes", 0, "head_dim", 0, "shape_kind"),
    ("shapes", 0, "gated", 1, "shape_kind"),
    ("shapes", 1, "rows_per_slice", 1, "shape_kind"),
    ("shapes", 4, "rows_per_slice", 0, "shape_kind"),
    ("blocks", 0, "shape", 5, "block_shape"),
    ("blocks", 0, "shape", 4, "block_order"),
    ("blocks", 6, "shape", 0, "block_order"),
    ("blocks", 0, "flags", 1, "block_flags"),
    ("blocks", 0, "flags", 4, "block_flags"),
    ("blocks", 1, "flags", 8, "block_flags"),
    ("blocks", 0, "window", 71, "block_attention"),
    ("blocks", 1, "window", 4, "block_attention"),
    ("blocks", 0, "rotary", 3, "block_attention"),
    ("blocks", 1, "rotary", 1, "block_attention"),
    ("blocks", 0, "softcap", MINUS, "block_softcap"),
    ("blocks", 1, "softcap", TWO, "block_softcap"),
    ("blocks", 6, "softcap", NAN, "block_softcap"),
    ("blocks", 0, "qkv_scale_at", ABSENT, "block_tensors"),
    ("blocks", 0, "up_scale_at", 0, "block_tensors"),
    ("blocks", 0, "input_beta_at", 0, "block_tensors"),
    ("blocks", 0, "branch_beta_at", 0, "block_tensors"),
    ("blocks", 0, "attention_gamma_at", 0, "block_tensors"),
    ("blocks", 2, "key_norm_gamma_at", ABSENT, "block_tensors"),
    ("blocks", 6, "branch_gamma_at", 0, "block_tensors"),
    ("blocks", 0, "qkv_scale_at", 32, "tensor_place"),
    ("blocks", 2, "query_norm_gamma_at", 1 << 30, "tensor_place"),
    ("records", 0, "bytes", 64, "record"),
    ("plans", 1, "bits_at", 1 << 20, "plan_tables"),
    ("plans", 1, "reserved", 1, "plan_fields"),
    ("regions", REGIONS.index("preload"), "bytes", 64, "plan_regions"),
    ("regions", REGIONS.index("cache"), "bytes", 64, "region_size"),
    ("regions", REGIONS.index("cache"), "offset", 0, "regions_apart"),
    ("regions", REGIONS.index("turns"), "bytes", 0, "region_size"),
    ("regions", REGIONS.index("normed"), "offset", 1 << 40, "region_place"),
    ("extents of plan 0", 0, "block", 7, "extent_shard"),
    ("extents of plan 0", 0, "count", 3, "extent_shard"),
    ("extents of plan 0", 0, "wait_block", 0, "extent_waits"),
    ("bits of plan 0", 1, "bits", 0, "shard_kept"),
    ("bits of plan 1", 0, "bits", 9, "shard_bits"),
]


# The same of a package whose rows are tied.
TIED_FAULTS: list[tuple[str, int, str, int, str]] = [
    ("header", 0, "row_type", 0, "row_fits"),
    ("header", 0, "row_stride", 80, "row_tied"),
    ("header", 0, "table_resident", 1, "row_tied"),
    ("model", 0, "vocabulary", 149, "row_tied"),
    ("model", 0, "output_features", 149, "row_tied"),
    ("model", 0, "causal", 0, "row_tied"),
    ("regions", REGIONS.index("staging"), "bytes", 4096, "region_size"),
    ("shapes", 4, "rows_per_slice", 37, "vocabulary_rows"),
]


@pytest.fixture(scope="module")
def engine(sanitized: Callable[[str], Path]) -> Iterator[Engine]:
    running = Engine(sanitized("verdict.c"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(write(tmp_path_factory.mktemp("decoder") / "decoder.stic"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(write(tmp_path_factory.mktemp("tied") / "tied.stic", Options(tied=True)))


@pytest.mark.parametrize("fault", FAULTS)
def test_both_readers_name_the_fault(fault: tuple[str, int, str, int, str], original: Original, engine: Engine) -> None:
    _both_name(fault, original, engine)


@pytest.mark.parametrize("fault", TIED_FAULTS)
def test_both_readers_name_the_fault_of_tied_rows(
    fault: tuple[str, int, str, int, str], tied: Original, engine: Engine
) -> None:
    _both_name(fault, tied, engine)


def _both_name(fault: tuple[str, int, str, int, str], original: Original, engine: Engine) -> None:
    table, row, field, value, check = fault
    at, structure, rows = original.tables[table]
    assert row < rows
    kind, offset = structure.fields[field][:2]
    index, start = bytearray(original.index), at + row * structure.itemsize + offset
    index[start : start + kind.itemsize] = value.to_bytes(kind.itemsize, "little")
    path = original.package.path
    (path / "index.bin").write_bytes(sealed(index))
    with pytest.raises(PackageError) as caught:
        Package.open(path)
    said = engine(path)
    (path / "index.bin").write_bytes(original.index)
    assert caught.value.check == check and said.startswith(f"refused {check}: "), (str(caught.value), said)


def test_tables_and_weights_read_back(original: Original) -> None:
    package = original.package
    assert package.shapes == SHAPES and package.bits.shape == (len(SHAPES), 4)
    assert package.bits.tolist()[1] == [16, 4, 4, 0] and package.bits.tolist()[4] == [4, 0, 0, 0]
    assert package.kept.tolist() == [shape.slices for shape in SHAPES]
    assert package.records.shape == (len(SHAPES), LEVELS, 4) and not package.records["bytes"][4, :, 1:].any()
    for block, shape in enumerate(SHAPES):
        for name in shape.matrices:
            matrix, (n, k) = package.matrix(block, shape.slices - 1, name, 4), shape.matrix(name)
            assert matrix.codes is not None and matrix.ratios is not None and len(matrix.outlier_rows) == 0
            assert matrix.codes.shape == (n, k) and matrix.codes.max() == 15
            assert matrix.ratios.shape == (n, -(-k // GROUP))
            at = record_layout(shape, 0, True, group=GROUP).ratios[shape.matrices.index(name)]
            stored = np.frombuffer(package.record(block, 0, shape.slices - 1), np.uint8)
            groups = matrix.ratios.shape[1]
            assert stored[at + (n // 16 - 1) * groups * 16 + (groups - 1) * 16 + 15] == matrix.ratios[n - 1, groups - 1]
    assert package.regions["cache"][1] == cache_bytes(SHAPES, LENGTH, "float16") > 0


def test_a_pass_is_not_a_run(original: Original) -> None:
    with pytest.raises(InputError, match="holds a decoder"):
        Reference(original.package).run([1, 2])
