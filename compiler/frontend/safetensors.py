"""Weights of a Hugging Face directory, read from model.safetensors without torch.

Format: u64 header length, JSON header (name -> dtype, shape, data_offsets), then the data
(https://huggingface.co/docs/safetensors). bfloat16, which numpy lacks, becomes float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.errors import InputError

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BOOL": "u1",
}
_MAPPED_BYTES = 1 << 20  # weights this large are mapped, each for itself: its pages go when it is let go
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


class Weights:
    """The tensors of one file, read on demand; `prefix` is put before every name asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header. InputError if `path` is missing or damaged."""
        if not path.is_file():
            raise InputError(f"{path}: no such file; save the model with safetensors (save_pretrained) first")
        self._path = path
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        size = int(data[:8].view("<u8")[0]) if data.size >= 8 else 0
        if not 0 < size <= data.size - 8:
            raise InputError(f"{path} is not a safetensors file, or is truncated")
        try:
            header: dict[str, Any] = json.loads(bytes(data[8 : 8 + size]))
            header.pop("__metadata__", None)
            entries = {
                name: (e["dtype"], tuple(e["shape"]), *map(int, e["data_offsets"])) for name, e in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} has a damaged header: {error}") from error
        if any(not 0 <= begin <= end <= data.size - 8 - size for _, _, begin, end in entries.values()):
            raise InputError(f"{path} is truncated: its header promises more bytes than it has")
        self._start, self._data_bytes = 8 + size, int(data.size) - 8 - size
        self._entries = entries
        for old, new in _OLD_NAMES:
            for name in [n for n in entries if n.endswith(old)]:
                entries[name.removesuffix(old) + new] = entries[name]
        self.prefix = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the tensors, in old and new spelling."""
        return tuple(self._entries)

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return self._data_bytes

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._entries

    def use_prefix(self, prefix: str, probe: str) -> None:
        """Use `prefix` if the file names its tensors so (told by the tensor `probe`)."""
        if prefix + probe in self._entries:
            self.prefix = prefix

    def get(self, name: str, shape: tuple[int | None, ...], whole_name: bool = False) -> NDArray[Any]:
        """Return a tensor, float16 or float32. A large one that the file holds as such is a view of it, read only.

        Its shape must fit `shape` (None: any size). InputError otherwise.
        """
        full = name if whole_name else self.prefix + name
        if full not in self._entries:
            raise InputError(f"{self._path}: it has no weight '{full}', which the model of config.json needs")
        actual = self.shape(full)
        if len(actual) != len(shape) or any(s is not None and s != a for s, a in zip(shape, actual, strict=True)):
            raise InputError(f"{self._path}: weight '{full}' has shape {actual}; config.json says {shape}")
        return self._floats(full, self._stored(full))

    def shape(self, full: str) -> tuple[int, ...]:
        """The shape of a tensor by its full name."""
        shape: tuple[int, ...] = self._entries[full][1]
        return shape

    def rows(self, full: str, first: int, count: int) -> NDArray[Any]:
        """Rows first .. first + count - 1 of a tensor by its full name, float16 or float32; the rest is not read."""
        return self._floats(full, self._stored(full)[first : first + count])

    def _stored(self, full: str) -> NDArray[Any]:
        """A tensor as the file holds it."""
        dtype, shape, begin, end = self._entries[full]
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise InputError(f"{self._path}: weight '{full}' has type {dtype}; expected F32, F16, BF16 or F64")
        kind, offset, count = np.dtype(_DTYPES[dtype]), self._start + begin, int(np.prod(shape))
        if begin < 0 or end - begin != count * kind.itemsize:
            raise InputError(f"{self._path} is truncated: weight '{full}' is not whole")
        if offset % kind.itemsize == 0 and end - begin >= _MAPPED_BYTES:
            return np.memmap(self._path, kind, "r", offset, shape)
        return np.fromfile(self._path, kind, count, offset=offset).reshape(shape)

    def _floats(self, full: str, array: NDArray[Any]) -> NDArray[Any]:
        """What the file holds as float16 or float32. InputError for what is not finite."""
        dtype = self._entries[full][0]
        if dtype == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        result = np.asarray(array if dtype == "F16" else array.astype(np.float32, copy=False))
        if not np.isfinite(result).all():
            raise InputError(
                f"{self._path}: weight '{full}' holds values that are NaN or infinite; train or save it again"
            )
        return result
