"""What stands before a GGUF file's weights: nothing in it is believed before it is seen to fit."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from stic.compiler.frontend.gguf_file import GgufFile
from stic.runtime.errors import InputError, UnsupportedModelError
from tests.compiler.frontend import gguf_files

U8, F32, TEXT, LIST = 0, 6, 8, 9


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def info(name="t", sizes=(32, 2), kind=Kind.F32, offset=0, dimensions=None):
    count = len(sizes) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, offset)


def file(folder, keys=(), infos=(), data=b"", counts=None, head=b"GGUF\3\0\0\0"):
    """A file of these parts; `counts` are others than there are."""
    tensors, many = counts or (len(infos), len(keys))
    before = head + struct.pack("<QQ", tensors, many) + b"".join((*keys, *infos))
    path = folder / "m.gguf"
    path.write_bytes(before + b"\0" * (-len(before) % 32) + data)
    return path


def test_every_type_of_value_is_read(tmp_path):
    said = {"a.flag": True, "a.text": "é", "a.number": 7, "a.real": 1e-5, "a.list": [1, 2], "a.texts": ["x", ""]}
    path = gguf_files.write(tmp_path / "m.gguf", "a", {name[2:]: value for name, value in said.items()}, {})
    found = GgufFile(path).metadata
    assert list(found.pop("a.list")) == said.pop("a.list")
    assert {name: found[name] for name in said} == said and found["a.flag"] is True


@pytest.mark.parametrize("version", [2, 3])
def test_versions(version, tmp_path):
    assert GgufFile(file(tmp_path, head=b"GGUF" + struct.pack("<I", version))).tensors == {}


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_any_alignment(alignment, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(alignment)
    arrays = {name: np.full((3, 5), number, np.float32) for number, name in enumerate("abc")}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GgufFile(tmp_path / "m.gguf")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.rows(name, 0, 3), array)


TAKEN = [
    kind
    for kind in Kind
    if kind not in (Kind.Q8_1, Kind.Q8_K, Kind.I8, Kind.I16, Kind.I32, Kind.I64, Kind.F64, Kind.Q1_0)
]


@pytest.mark.parametrize("kind", TAKEN, ids=lambda kind: kind.name)
def test_rows_are_what_the_gguf_package_dequantises(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns = 2 * block
    raw = np.random.default_rng(0).integers(0, 60, (6, columns // block * size), np.uint8)  # scales that are finite
    path = file(tmp_path, infos=[info(sizes=(columns, 6), kind=kind)], data=raw.tobytes())
    found = GgufFile(path).rows("t", 1, 4)
    np.testing.assert_array_equal(found, gguf.quants.dequantize(raw, kind)[1:5])
    assert found.dtype == np.float32 and found.shape == (4, columns)


def test_doubles_are_read(tmp_path):
    values = np.random.default_rng(0).standard_normal((2, 32))
    path = file(tmp_path, infos=[info(kind=Kind.F64)], data=values.tobytes())
    np.testing.assert_array_equal(GgufFile(path).rows("t", 0, 2), values.astype(np.float32))


@pytest.mark.parametrize("kind", [Kind.Q8_1, Kind.Q8_K, Kind.I32, Kind.Q1_0], ids=lambda kind: kind.name)
def test_types_that_are_not_dequantised_are_refused_by_name(kind, tmp_path):
    path = file(tmp_path, infos=[info(sizes=(256, 1), kind=kind)], data=bytes(4096))
    with pytest.raises(UnsupportedModelError, match=f"tensor 't' has type {kind.name}, which is not dequantised"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (Kind.F32, np.full((2, 32), np.nan, np.float32)),
        (Kind.F16, np.full((2, 32), np.inf, np.float16)),
        (Kind.Q8_0, np.full((2, 34), 0xFF, np.uint8)),  # a scale that is NaN
        (Kind.F64, np.full((2, 32), 1e300)),  # too large for float32
    ],
)
def test_values_that_are_no_numbers_are_refused(kind, raw, tmp_path):
    found = GgufFile(file(tmp_path, infos=[info(kind=kind)], data=raw.tobytes()))
    with pytest.raises(InputError, match="tensor 't' holds values that are NaN or infinite"):
        found.rows("t", 0, 2)


HUGE = 2**63
PART = key("k", U8, b"\x01")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"head": b""}, "is not a GGUF file"),
        ({"head": b"GGML" + struct.pack("<I", 3)}, "is not a GGUF file"),
        ({"head": b"GGUF" + struct.pack("<I", 1)}, "GGUF version 1; 2 and 3 are read"),
        ({"head": b"GGUF" + struct.pack("<I", 4)}, "GGUF version 4"),
        ({"head": b"GGUF" + struct.pack(">I", 3)}, "big-endian"),
        ({"counts": (HUGE, 0)}, "promises 9223372036854775808 tensors"),
        ({"counts": (0, HUGE)}, "and 9223372036854775808 keys"),
        ({"counts": (0, 9)}, "promises"),
        ({"counts": (9, 0)}, "dimensions, not 1 to 4|promises"),
        ({"keys": [struct.pack("<Q", HUGE)]}, "the name of a key is said to have 9223372036854775808 bytes"),
        ({"keys": [key("k", 99, b"")]}, "its key 'k' has type 99"),
        ({"keys": [key("k", TEXT, struct.pack("<Q", 2**40))]}, "the text of 'k' is said to have 1099511627776 bytes"),
        ({"keys": [key("k", TEXT, text(b"\xff\xfe"))]}, "the text of 'k' at byte .* is not UTF-8"),
        ({"keys": [key(b"\xff", U8, b"\x01")]}, "the name of a key at byte .* is not UTF-8"),
        ({"keys": [PART, PART]}, "its key 'k' is there twice"),
        ({"keys": [key("k", LIST, struct.pack("<IQ", F32, HUGE))]}, "promises"),
        ({"keys": [key("k", LIST, struct.pack("<IQ", TEXT, HUGE))]}, "said to hold 9223372036854775808 texts"),
        ({"keys": [key("k", LIST, struct.pack("<IQ", TEXT, 2**40))]}, "said to hold 1099511627776 texts"),
        ({"keys": [key("k", LIST, struct.pack("<IQ", 99, 0))]}, "its key 'k' has type 99"),
        ({"keys": [key("k", LIST, struct.pack("<IQ", LIST, 1) * 1000)]}, "its key 'k' holds lists of lists"),
        ({"keys": [key("general.alignment", U8, b"\x03")]}, "its alignment is 3, not a power of two"),
        ({"keys": [key("general.alignment", U8, b"\x00")]}, "its alignment is 0"),
        ({"keys": [key("general.alignment", TEXT, text("x"))]}, "its alignment is x"),
        ({"keys": [key("general.alignment", 10, struct.pack("<Q", 2**40))]}, "its alignment is 1099511627776"),
        ({"infos": [info(dimensions=0)]}, "has 0 dimensions, not 1 to 4"),
        ({"infos": [info(dimensions=2**31)]}, "has 2147483648 dimensions"),
        ({"infos": [info(sizes=(0, 2))]}, r"has sizes \(0, 2\)"),
        ({"infos": [info(sizes=(33, 2), kind=Kind.Q8_0)]}, r"type Q8_0 has sizes \(33, 2\)"),
        ({"infos": [info(sizes=(2**63, 2**63))]}, "is said to end at byte"),
        ({"infos": [info(sizes=(2**62, 4))]}, "is said to end at byte"),
        ({"infos": [info(kind=77)]}, "tensor 't' has type 77, which is not known"),
        ({"infos": [info(offset=HUGE)]}, "is said to end at byte"),
        ({"infos": [info(offset=32)], "data": bytes(256)}, "is said to end at byte"),
        ({"infos": [info(offset=1)], "data": bytes(512)}, "is said to end at byte"),
        ({"infos": [info(), info()], "data": bytes(256)}, "its tensor 't' is there twice"),
        ({"infos": [info()], "data": bytes(255)}, "is said to end at byte"),
    ],
)  # fmt: skip
def test_damage_is_refused_at_once_and_in_little_memory(parts, said, tmp_path):
    path = file(tmp_path, **parts)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=said) as error:
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    keys = {"block_count": 2, "names": ["a", "bc"], "numbers": [1.5, 2.5], **gguf_files.tokens(20)}
    whole = gguf_files.write(tmp_path / "m.gguf", "llama", keys, {"t": np.zeros((2, 8), np.float32)}).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(InputError):
            GgufFile(tmp_path / "cut.gguf")


def test_what_is_not_there_or_no_file_is_refused(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(InputError, match=r"give a \.gguf file"):
            GgufFile(path)
