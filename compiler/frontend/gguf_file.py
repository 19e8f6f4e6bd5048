"""A GGUF file's header, metadata and tensors: bounded reading of what may be damaged or hostile.

Format: "GGUF", u32 version (2 or 3), u64 tensors, u64 keys; for each key its name, u32 type and value; for each tensor
its name, u32 dimensions, u64 sizes (fastest first), u32 type and u64 offset into the data, which begins at the next
multiple of the alignment (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). All is little-endian.

Nothing is believed before it is seen to lie inside the file, so time and memory are bounded by its size. `gguf`, the
package, dequantises; its own reader trusts counts and offsets, and is not used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from stic.runtime.errors import InputError, UnsupportedModelError

Array = NDArray[np.float32]
Value = int | float | bool | str | NDArray[Any] | list[str]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# Far above any model's, far below what would hurt. Names of tensors are shorter than 64 bytes in ggml.
_MOST_KEYS, _MOST_TENSORS, _MOST_STRINGS = 1 << 16, 1 << 16, 1 << 22
_MOST_NAME, _MOST_TEXT, _MOST_ALIGNMENT, _MOST_DIMENSIONS = 1 << 10, 1 << 24, 1 << 20, 4
_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}  # numpy reads these as they are


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file, checked to lie inside it."""

    name: str
    shape: tuple[int, ...]  # slowest dimension first, as numpy has it: a matrix is (out, in)
    kind: GGMLQuantizationType
    at: int  # of its first byte in the file
    row_bytes: int


class GgufFile:
    """An open GGUF file: its metadata, and its tensors, which are mapped and converted as they are read."""

    def __init__(self, path: Path) -> None:
        """Read everything but the tensors' values.

        Raises InputError for a file that is damaged, UnsupportedModelError for a version or a type that is not read.
        """
        self.path = path
        try:
            self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; give a .gguf file") from error
        cursor = _Cursor(path, self._bytes)
        tensors, keys = _header(cursor)
        self.metadata: dict[str, Value] = {}
        for _ in range(keys):
            name = cursor.text(_MOST_NAME, "the name of a key")
            if name in self.metadata:
                raise cursor.damaged(f"its key '{name}' is there twice")
            self.metadata[name] = cursor.value(name)
        infos = [_Info.read(cursor) for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
            raise cursor.damaged(f"its alignment is {_shown(alignment)}, not a power of two up to {_MOST_ALIGNMENT}")
        data = -(-cursor.at // alignment) * alignment
        self.tensors: dict[str, StoredTensor] = {}
        for info in infos:
            if info.name in self.tensors:
                raise cursor.damaged(f"its tensor '{info.name}' is there twice")
            self.tensors[info.name] = info.placed(cursor, data, alignment)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, slowest dimension first: a matrix is (out, in)."""
        return self.tensors[name].shape

    def rows(self, name: str, first: int, count: int) -> Array:
        """Return rows first .. first + count - 1 of a tensor as float32; no others are converted.

        Raises InputError where one holds a value that is NaN or infinite.
        """
        tensor = self.tensors[name]
        if len(tensor.shape) == 1:  # blocks of a type may span what is asked for
            return self._converted(tensor, 0, 1)[0, first : first + count]
        inner = math.prod(tensor.shape[1:-1])
        return self._converted(tensor, first * inner, count * inner).reshape(count, *tensor.shape[1:])

    def _converted(self, tensor: StoredTensor, first: int, count: int) -> Array:
        """Rows along the last dimension, (count, tensor.shape[-1])."""
        begin = tensor.at + first * tensor.row_bytes
        raw = self._bytes[begin : begin + count * tensor.row_bytes]
        with np.errstate(all="ignore"):  # damaged scales overflow; the check that follows finds them
            if tensor.kind.name in _PLAIN:
                found = raw.view(_PLAIN[tensor.kind.name]).astype(np.float32)
            else:
                found = dequantize(np.ascontiguousarray(raw).reshape(count, tensor.row_bytes), tensor.kind)
        if not np.isfinite(found).all():
            raise InputError(
                f"{self.path}: tensor '{tensor.name}' holds values that are NaN or infinite; download it again, or"
                " convert the model again"
            )
        return found.astype(np.float32, copy=False).reshape(count, tensor.shape[-1])


@dataclass(frozen=True)
class _Info:
    """A tensor as the file lists it."""

    name: str
    sizes: tuple[int, ...]  # fastest first
    kind: int
    offset: int

    @classmethod
    def read(cls, cursor: _Cursor) -> _Info:
        name = cursor.text(_MOST_NAME, "the name of a tensor")
        dimensions = cursor.number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise cursor.damaged(f"its tensor '{name}' has {dimensions} dimensions, not 1 to {_MOST_DIMENSIONS}")
        sizes = tuple(cursor.number("<Q") for _ in range(dimensions))
        return cls(name, sizes, cursor.number("<I"), cursor.number("<Q"))

    def placed(self, cursor: _Cursor, data: int, alignment: int) -> StoredTensor:
        """Where it lies, if its type is known and all of it is in the file."""
        try:
            kind = GGMLQuantizationType(self.kind)
        except ValueError:
            raise UnsupportedModelError(
                f"{cursor.path}: tensor '{self.name}' has type {self.kind}, which is not known; convert the model to"
                " another type, such as Q8_0"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if kind.name not in _PLAIN and not _dequantised(kind):
            raise UnsupportedModelError(
                f"{cursor.path}: tensor '{self.name}' has type {kind.name}, which is not dequantised; convert the model"
                " to another type, such as Q8_0"
            )
        if min(self.sizes) < 1 or self.sizes[0] % block:
            raise cursor.damaged(f"its tensor '{self.name}' of type {kind.name} has sizes {_shown(self.sizes)}")
        row_bytes = self.sizes[0] // block * block_bytes
        end = data + self.offset + math.prod(self.sizes[1:]) * row_bytes
        if self.offset % alignment or end > cursor.size:
            raise cursor.damaged(f"its tensor '{self.name}' is said to end at byte {end} of {cursor.size}")
        return StoredTensor(self.name, self.sizes[::-1], kind, data + self.offset, row_bytes)


class _Cursor:
    """A place in the file, from which values are read one after another; none goes past its end."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path, self.at, self.size = path, 0, int(data.size)
        self._data = data
        self._view = memoryview(data)  # type: ignore[arg-type]  # numpy's arrays are buffers

    def damaged(self, why: str) -> InputError:
        return InputError(f"{self.path} is damaged, or is truncated: {why}; download it again")

    def skip(self, count: int) -> int:
        """Go on by so many bytes, and return where they begin."""
        begin = self.at
        if count > self.size - begin:
            raise self.damaged(f"at byte {begin} it promises {count} more, and has {self.size - begin}")
        self.at += count
        return begin

    def bytes(self, begin: int, count: int) -> bytes:
        return bytes(self._view[begin : begin + count])

    def number(self, layout: str) -> int:
        begin = self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self._view, begin)[0])

    def text(self, most: int, what: str) -> str:
        length = self.number("<Q")
        if length > most:
            raise self.damaged(f"{what} is said to have {length} bytes, more than {most}")
        begin = self.skip(length)
        try:
            return str(self._view[begin : begin + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} at byte {begin} is not UTF-8 ({error.reason})") from error

    def value(self, key: str) -> Value:
        """The value of a key, after its type."""
        kind = self.number("<I")
        if kind == _STRING:
            return self.text(_MOST_TEXT, f"the text of '{key}'")
        if kind != _ARRAY:
            found = self._scalars(key, kind, 1)[0]
            # The shortest decimal that is this float32 is what the configuration said: 1e-5, not 9.99999975e-6.
            return float(str(found)) if found.dtype == np.float32 else found.item()
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _ARRAY:
            raise self.damaged(f"its key '{key}' holds lists of lists, which no model has")
        if kind != _STRING:
            return self._scalars(key, kind, count)
        if count > min(_MOST_STRINGS, (self.size - self.at) // 8):
            raise self.damaged(f"its key '{key}' is said to hold {count} texts")
        what = f"a text of '{key}'"
        return [self.text(_MOST_TEXT, what) for _ in range(count)]

    def _scalars(self, key: str, kind: int, count: int) -> NDArray[Any]:
        if kind not in _SCALARS:
            raise self.damaged(f"its key '{key}' has type {kind}, which GGUF does not have")
        dtype = np.dtype(_SCALARS[kind])
        begin = self.skip(count * dtype.itemsize)
        raw = self._data[begin : begin + count * dtype.itemsize]
        return raw != 0 if dtype.kind == "b" else raw.view(dtype)


def _header(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and keys there are."""
    begin = cursor.skip(4) if cursor.size >= 4 else 0
    if cursor.bytes(begin, 4) != MAGIC:
        raise InputError(
            f"{cursor.path} is not a GGUF file: it does not begin with {MAGIC.decode()}; give a .gguf file"
        )
    version = cursor.number("<I")
    if version and not version & 0xFFFF:
        raise UnsupportedModelError(f"{cursor.path} is big-endian; convert the model for little-endian machines")
    if version not in _VERSIONS:
        raise UnsupportedModelError(
            f"{cursor.path} is of GGUF version {version}; {' and '.join(map(str, _VERSIONS))} are read:"
            " convert the model again"
        )
    tensors, keys = cursor.number("<Q"), cursor.number("<Q")
    if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
        raise cursor.damaged(f"it promises {tensors} tensors and {keys} keys")
    return tensors, keys


def _dequantised(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package turns this type into float32; it says so only by trying."""
    block_bytes = GGML_QUANT_SIZES[kind][1]
    try:
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _shown(value: object) -> str:
    return str(value)[:80]
