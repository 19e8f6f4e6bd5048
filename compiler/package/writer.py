"""Write a package: shards, trunk, embeddings, kernels, plan and index, all or nothing.

Everything is written to a folder beside the destination, which takes the destination's name when it is
complete; a full disk or an interrupted run leaves what was there before.

Packages of one model for one target differ in their plan, and so in their index only: one that was written before, the
twin, lends the next one its files.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.package.contents import Quantized
from stic.compiler.package.index import Parts, PlacedPlan, index
from stic.compiler.package.trunk import finite
from stic.compiler.plan import to_json
from stic.compiler.store import Store
from stic.runtime.blocks import positions
from stic.runtime.errors import InputError
from stic.runtime.files import chunks, whole_folder
from stic.runtime.format import FULL, LEVEL_BITS, MAGIC, TILE
from stic.runtime.gpu_format import PROGRAM_FILE
from stic.runtime.layout import planes_in, record_layout
from stic.runtime.package import Package
from stic.schedules.pack import interleave, pack_planes

# What packages of one model for one target have in common.
_TEXT = ("tokenizer.json", "chat_template.jinja")
_SHARED = ("shards.bin", "trunk.bin", "embeddings.bin", "kernels.so", *_TEXT)


def record(quantized: Quantized, store: Store, block: int, level: int, slice_: int, q: int) -> bytes:
    """Assemble one record of shards.bin with interleave q; see `stic.runtime.format` for its parts.

    Raises InputError if a weight is more than float16 holds, where it is to be stored so.
    """
    name_of_model = quantized.name
    shape = store.shapes[block]
    size = int(store.bytes[block, level, slice_])
    data = np.zeros(size, np.uint8)

    def put(at: int, values: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        data[at : at + len(raw)] = raw

    if level == FULL:
        layout = record_layout(shape, FULL, store.nested, store.full_bits)
        weights = quantized.weights(block, slice_)
        for name, (at,) in zip(shape.matrices, layout.planes, strict=True):
            with np.errstate(over="ignore"):
                values = weights[name].astype(f"<f{store.full_bits // 8}")
            put(at, finite(values, name_of_model, f"layer {block}, {name}"))
        return data.tobytes()
    bits = LEVEL_BITS[level]
    matrices = [quantized.level(block, slice_, name, bits) for name in shape.matrices]
    counts = tuple(len(m.outliers) for m in matrices)
    layout = record_layout(shape, level, store.nested, 0, counts, store.group)
    for m, matrix in enumerate(matrices):
        planes = pack_planes(matrix.codes, bits, q)[-planes_in(level, store.nested) :]
        for at, plane in zip(layout.planes[m], planes, strict=True):
            put(at, plane)
        put(layout.tables[m], matrix.table)
        if matrix.ratios is not None and layout.ratios:
            ratios = matrix.ratios.reshape(-1, TILE, matrix.ratios.shape[1])
            put(layout.ratios[m], ratios.transpose(0, 2, 1))
        if layout.blocks:
            outliers = matrix.outliers
            blocks = np.arange(0, shape.matrix(shape.matrices[m])[0] + 1, TILE)
            put(layout.blocks[m], np.searchsorted(outliers.rows, blocks).astype("<u4"))
            position = positions(outliers.rows, outliers.columns, q)
            order = np.lexsort((position, outliers.rows // TILE))
            entries = np.zeros(len(outliers), [("position", "<u2"), ("value", "<f2")])
            entries["position"] = position[order]
            with np.errstate(over="ignore"):
                entries["value"] = outliers.values[order]
            finite(entries["value"], name_of_model, f"layer {block}, {shape.matrices[m]}")
            if len(entries):
                put(layout.outliers[m], entries)
    return data.tobytes()


def _is_package(path: Path) -> bool:
    """Whether an index of stic's is there, whole or damaged: replacing a package deletes all that is beside it."""
    try:
        with (path / "index.bin").open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def check_output(output: Path) -> None:
    """Raise InputError if something stands at `output` that a package may not replace."""
    if output.exists() and not _is_package(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not a stic package: choose another output, or remove it")


def write_package(
    parts: Parts,
    output: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    twin: Path | None = None,
) -> None:
    """Write a package to directory `output`, replacing a package that stands there.

    `twin` is a package of the same model for the same target, both assembled to keep all planes: what does not depend
    on the plan is linked from it, or copied across file systems, and full precision comes along even where no plan uses
    it. Raises InputError if it is
    of something else, or `output` exists and is no package; PackageError if the twin is damaged, OSError if `output`
    cannot be written; in any case `output` is as it was.
    """
    output = output.absolute()
    check_output(output)
    original = None if twin is None else Package.open(twin)
    if original is not None:
        parts = _like(parts, original)
    with whole_folder(output) as staging:
        (staging / "plan.json").write_text(json.dumps(_description(parts), indent=1), encoding="utf-8")
        if parts.gpu is not None:
            shutil.copyfile(parts.gpu.program.path, staging / PROGRAM_FILE)
        known: dict[str, int] = {}
        if original is None:
            crcs = _write_shared(parts, staging, progress)
        else:
            crcs = original.records["crc"]
            known = {name: int(original.files[name]["crc"]) for name in _SHARED if name in original.files}
            for name in known:
                _link(original.path / name, staging / name)
        (staging / "index.bin").write_bytes(index(parts, crcs, staging, known))


def _write_shared(parts: Parts, folder: Path, progress: Callable[[int, int], None]) -> NDArray[np.uint32]:
    """Write the files of _SHARED; returns the CRC of every record, (blocks, LEVELS, most slices)."""
    crcs = _write_shards(parts, folder / "shards.bin", progress)
    (folder / "trunk.bin").write_bytes(parts.trunk.data)
    (folder / "embeddings.bin").write_bytes(parts.embeddings)
    shutil.copyfile(parts.kernels, folder / "kernels.so")
    for name, content in parts.contents.files.items():
        (folder / name).write_bytes(content)
    return crcs


def _like(parts: Parts, twin: Package) -> Parts:
    """The parts, with the records that the twin stores. Raises InputError if it cannot lend its files to them."""
    store, records, head = parts.store, twin.records, twin.header
    levels = slice(None) if store.full_bits else slice(FULL)
    same = {
        "shards.bin": records.shape == store.bytes.shape
        and bool(head["nested"]) == store.nested
        and int(head["interleave"]) == interleave(parts.target)
        and int(head["full_bits"]) in ((store.full_bits,) if store.full_bits else (0, 16, 32))
        and np.array_equal(records["bytes"][:, levels], store.bytes[:, levels])
        and np.array_equal(records["offset"][:, levels], np.where(store.bytes > 0, store.offset, 0)[:, levels]),
        "trunk.bin": twin.trunk == parts.trunk.data,
        # Not by CRC: that of rows which end with their own is the same for all rows.
        "embeddings.bin": _holds(twin.path / "embeddings.bin", parts.embeddings),
        "kernels.so": filecmp.cmp(twin.path / "kernels.so", parts.kernels, shallow=False),
        **{name: _file_of(twin, name) == parts.contents.files.get(name) for name in _TEXT},
    }
    for name in _SHARED:
        if not same[name]:
            raise InputError(
                f"{twin.path} is not a package of the same model for the same target: its {name} differs; choose"
                " another twin, or write the package without one"
            )
    total = int(twin.files["shards.bin"]["bytes"])
    size, offset = records["bytes"].astype(np.int64), records["offset"].astype(np.int64)
    stored = replace(store, full_bits=int(head["full_bits"]), bytes=size, offset=offset, total_bytes=total)
    return replace(parts, store=stored)


def _file_of(package: Package, name: str) -> bytes | None:
    """A file of a package, if it has it."""
    return package.read(name) if name in package.files else None


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has just this content, without a copy of it."""
    if path.stat().st_size != len(content):
        return False
    at, view = 0, memoryview(content)
    for chunk in chunks(path):
        if view[at : at + len(chunk)] != chunk:
            return False
        at += len(chunk)
    return at == len(content)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no such thing, or is another one."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write_shards(parts: Parts, path: Path, progress: Callable[[int, int], None]) -> NDArray[np.uint32]:
    """Write shards.bin; returns the CRC of every record, (blocks, LEVELS, most slices)."""
    store, q = parts.store, interleave(parts.target)
    crcs = np.zeros(store.bytes.shape, np.uint32)
    present = np.argwhere(store.bytes > 0)
    order = np.argsort(store.offset[tuple(present.T)], kind="stable")
    with path.open("wb") as file:
        for done, (block, level, s) in enumerate(present[order]):
            data = record(parts.quantized, store, int(block), int(level), int(s), q)
            crcs[block, level, s] = zlib.crc32(data)
            file.seek(int(store.offset[block, level, s]))
            file.write(data)
            progress(done + 1, len(present))
        file.truncate(store.total_bytes)
    return crcs


def _description(parts: Parts) -> dict[str, Any]:
    """plan.json: what people and Python want to know, beside the plan itself."""
    return {
        "format": 1,
        "model": dict(parts.contents.described),
        **parts.contents.said,
        "target": parts.target.name,
        **({} if parts.gpu is None else {"gpu": parts.gpu.name}),
        "quantizer": parts.quantized.quantizer,
        **_described(parts.default),
        **({"family": [_described(one) for one in parts.plans]} if len(parts.plans) > 1 else {}),
    }


def _described(one: PlacedPlan) -> dict[str, Any]:
    """A plan in plan.json."""
    return {
        "plan": to_json(one.plan),
        "predicted_us": one.predicted_us,
        "claimed_bytes": one.claimed_bytes,
        "timeline": one.timeline,
    }
