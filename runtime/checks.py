"""What a package must meet before anything in it is used: one table of checks, by subject.

The engine checks the same in C. A check has the same name there, as the first argument of STIC_REQUIRE, and a test
compares the names; another one compares both readers' verdicts on thousands of altered packages. A condition is given
exact Python integers, so that no sum of hostile numbers overflows, or columns of them (`Rows`), one element a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.errors import PackageError
from stic.runtime.format import ALIGN, BLOCK, FULL, GROUPS, INTERLEAVES
from stic.runtime.layout import Shape
from stic.runtime.limits import LEAST, LIMITS

Refuse = Callable[[str, str], PackageError]  # (name of the check, sentence)


@dataclass(frozen=True)
class Check:
    """One condition, and the sentence where it does not hold: `{p.x}` is of the facts, `{r.x}` of row `{i}`."""

    name: str
    holds: Callable[..., Any]  # (facts) -> bool, or (facts, rows) -> one bool a row
    sentence: str


class Rows:
    """The rows of a table, and more columns; each field is a column of exact integers, each other one an array."""

    def __init__(self, table: NDArray[Any] | None = None, **more: NDArray[Any]) -> None:
        flat = np.zeros(0, np.dtype([])) if table is None else table.reshape(-1)
        self._columns = {name: flat[name].astype(object) for name in flat.dtype.names or ()} | more

    def __getattr__(self, name: str) -> NDArray[Any]:
        try:
            return self._columns[name]
        except KeyError:
            raise AttributeError(name) from None

    def row(self, row: int) -> SimpleNamespace:
        """One row: its value in each column."""
        return SimpleNamespace(**{name: column[row] for name, column in self._columns.items()})


def pairs(regions: Mapping[str, tuple[int, int]], names: Iterable[tuple[str, str]]) -> Rows:
    """Pairs of regions (name -> offset, bytes): names `a` and `b`, where each begins (`a_at`) and ends (`a_end`)."""
    rows = [(a, *regions[a], b, *regions[b]) for a, b in names]
    table = np.array(rows, object).reshape(-1, 6).T
    a, a_at, a_bytes, b, b_at, b_bytes = table
    return Rows(a=a, a_at=a_at, a_end=a_at + a_bytes, b=b, b_at=b_at, b_end=b_at + b_bytes)


def fields(row: Any) -> SimpleNamespace:
    """The fields of one row as exact integers; bytes as they are."""
    return SimpleNamespace(**{name: row[name].item() for name in row.dtype.names})


def require(checks: Iterable[Check], refuse: Refuse, p: Any, rows: Rows | None = None) -> None:
    """Raise what `refuse` makes of the first check that does not hold."""
    for check in checks:
        if rows is None:
            if not check.holds(p):
                raise refuse(check.name, check.sentence.format(p=p))
        elif (bad := np.flatnonzero(~np.asarray(check.holds(p, rows), bool))).size:
            raise refuse(check.name, check.sentence.format(p=p, i=bad[0], r=rows.row(bad[0])))


def within(at: Any, size: Any, total: int) -> Any:
    """Whether `size` bytes at `at` lie in the first `total`."""
    return at + size <= total


# Fields of HEADER, MODEL and SHAPE: (least, most).
BOUNDS = {name: (LEAST.get(name, 0), most) for name, most in LIMITS.items()}


def check_bounds(structure: SimpleNamespace, refuse: Refuse) -> None:
    """Check `limits`: fields of a structure lie within BOUNDS."""
    for name, value in vars(structure).items():
        if name in BOUNDS and not BOUNDS[name][0] <= value <= BOUNDS[name][1]:
            least, most = BOUNDS[name]
            raise refuse("limits", f"{name} is {value}, outside {least} to {most}")


HEADER_CHECKS = (
    Check("full_bits", lambda h: h.full_bits in (0, 16, 32), "full_bits is {p.full_bits}"),
    Check(
        "request_blocks",
        lambda h: h.request_bytes % BLOCK == 0,
        "request_bytes {p.request_bytes} is not whole blocks",
    ),
    Check("stack_pages", lambda h: h.stack_bytes % BLOCK == 0, "stack_bytes {p.stack_bytes} is not whole pages"),
    Check("row_alignment", lambda h: h.row_stride % 8 == 0, "row_stride {p.row_stride} is not a multiple of 8"),
    Check(
        "interleave", lambda h: h.interleave in INTERLEAVES, f"interleave is {{p.interleave}}, not one of {INTERLEAVES}"
    ),
    Check("group", lambda h: h.group in GROUPS, "it has groups of {p.group} columns"),
    Check(
        "row_lanes",
        lambda h: h.row_lanes == 0 or h.row_lanes >= h.lanes,
        "{p.row_lanes} lanes read rows and {p.lanes} extents",
    ),
    Check("family", lambda h: h.plans == 1 or h.gpu_at == 0, "it has several plans, and layers on a GPU"),
)


def _file_name(name: bytes) -> bool:
    text = name.rstrip(b"\0")
    return (
        0 < len(text) < 32
        and all(0x20 < byte < 0x7F for byte in text)
        and text[:1] != b"."
        and b"/" not in text
        and text != b"index.bin"
    )


FILE_CHECKS = (
    Check("file_name", lambda p, f: [_file_name(name) for name in f.name], "file {i} has the name {r.name!r}"),
    Check("file_size", lambda p, f: f.bytes < 1 << 48, "file {i} is too large"),
    Check("file_twice", lambda p, f: [list(f.name).count(name) == 1 for name in f.name], "it lists {r.name!r} twice"),
)

# p: the fields of HEADER and of MODEL with the bytes of the files `embeddings` and `shards`.
CONTENT_CHECKS = (
    Check(
        "embedding_rows",
        lambda p: p.embeddings >= p.vocabulary * p.row_stride and p.embeddings % BLOCK == 0,
        "embeddings.bin of {p.embeddings} bytes cannot hold {p.vocabulary} rows",
    ),
    Check("shards_blocks", lambda p: p.shards % BLOCK == 0, "shards.bin is not a whole number of blocks"),
)

# r: RECORD with `level`, `least` (bytes without outliers) and `alone` (it has outliers); those with bytes.
RECORD_CHECKS = (
    Check(
        "record",
        lambda p, r: (
            ((r.level != FULL) | (p.full_bits > 0))
            & (r.offset % ALIGN == 0)
            & (r.bytes % ALIGN == 0)
            & within(r.offset, r.bytes, p.shards)
            & ((r.bytes == r.least) | (r.alone & (r.bytes >= r.least)))
        ),
        "a record of level {r.level}, {r.bytes} bytes at {r.offset}, does not fit",
    ),
)

# r: a shard with its `bits` and those `before` it, `kept` slices of its block of `slices`, `full` ones, and whether it
# is of kind `layer`.
SHARD_CHECKS = (
    Check(
        "shard_kept",
        lambda p, r: (r.kept == r.slices) | r.layer,
        "block {r.block} keeps {r.kept} slices of {r.slices}, and is no layer",
    ),
    Check(
        "shard_bits",
        lambda p, r: np.where(
            r.slice >= r.kept,
            r.bits == 0,
            np.where(r.slice < r.full, (r.bits == p.full_bits) & (r.bits > 0), (r.bits >= 2) & (r.bits <= 8)),
        ),
        "block {r.block} slice {r.slice} has {r.bits} bits",
    ),
    Check(
        "shard_order",
        lambda p, r: r.bits <= r.before,
        "block {r.block} slice {r.slice} has more bits than the slice before it",
    ),
)


def check_shards(header: SimpleNamespace, shapes: tuple[Shape, ...], bits: NDArray[np.uint8], refuse: Refuse) -> None:
    """The bits of a plan, (blocks, most slices), go together; `shapes` are those of the blocks."""
    block, number = np.indices(bits.shape)
    slices = np.array([shape.slices for shape in shapes])
    exact = bits.astype(int)
    before = np.concatenate([np.full((len(bits), 1), 255), exact[:, :-1]], axis=1)
    columns = {
        "block": block,
        "slice": number,
        "bits": exact,
        "before": before,
        "slices": slices[block],
        "kept": np.sum(bits > 0, axis=1)[block],
        "full": np.sum(bits > 8, axis=1)[block],
        "layer": np.array([shape.kind == "layer" for shape in shapes])[block],
    }
    there = number < slices[:, None]
    require(SHARD_CHECKS, refuse, header, Rows(**{name: column[there] for name, column in columns.items()}))
