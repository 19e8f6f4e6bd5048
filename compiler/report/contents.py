"""What is inside a package: sizes by file, by kind and by layer, the plan, and the predicted timeline.

What depends on the plan is that of the package's own number (`stic.runtime.package.Package.with_plan`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stic.compiler.frontend.reading import recorded
from stic.compiler.plan import Plan, from_json
from stic.compiler.quantities import format_bytes, format_time, quote_time
from stic.compiler.report.drawing import Strip
from stic.compiler.report.report import predicted
from stic.compiler.simulate import Event
from stic.runtime.errors import PackageError
from stic.runtime.format import ARCHITECTURES, FEATURES, FULL, LEVELS, MATRICES, POOLINGS, levels_of, planes_in
from stic.runtime.gpu_format import codes_bytes
from stic.runtime.package import Package


def plan_of(package: Package) -> Plan:
    """The plan that plan.json holds. Raises PackageError if there is none."""
    try:
        return from_json(package.plan["plan"])
    except KeyError as error:
        raise PackageError(f"{package.path / 'plan.json'} holds no plan: compile the package again") from error


def predicted_strip(package: Package) -> Strip:
    """The predicted timeline, for drawing. Raises PackageError if plan.json holds none."""
    try:
        events = tuple(Event(**event) for event in package.plan["timeline"])
    except (KeyError, TypeError) as error:
        raise PackageError(f"{package.path / 'plan.json'} holds no timeline: compile the package again") from error
    strip = predicted(events, int(package.header["max_length"]), int(package.header["deadline_us"]) or None)
    return strip if len(package.plans) == 1 else replace(strip, title=f"plan {package.number}, {strip.title}")


def family_facts(package: Package) -> list[dict[str, Any]]:
    """What tells the plans of a package apart; empty where there is only one. Times in microseconds, memory in bytes.

    `quality` is minus the loss on calibration examples, or what the planner maximised where that was not measured.
    """
    if len(package.plans) == 1:
        return []
    facts = []
    for entry in package.plans:
        bits = package.with_plan(entry.number).bits
        facts.append(
            {
                "number": entry.number,
                "default": entry.number == 0,
                "deadline_us": entry.deadline_us or None,
                "predicted_us": entry.predicted_us,
                "peak_bytes": entry.claimed_bytes,
                "preload_bytes": entry.preload[1],
                "mean_bits": float(np.mean(bits[bits > 0])) if bits.any() else 0.0,
                "quality": entry.quality,
            }
        )
    return facts


def budget_words(package: Package) -> str:
    """Which of the package's plans this is, and what it takes; empty where there is only one."""
    if len(package.plans) == 1:
        return ""
    entry = package.plans[package.number]
    deadline = f"for {quote_time(entry.deadline_us)}, " if entry.deadline_us else ""
    return (
        f"plan {entry.number} of {len(package.plans)}: {deadline}predicted {format_time(entry.predicted_us)},"
        f" holds {format_bytes(entry.claimed_bytes)}"
    )


def identity(package: Package) -> dict[str, Any]:
    """What the package is, as plain data."""
    head = package.header
    numbers = ("hidden", "slices", "layers", "vocabulary", "max_length", "output_features", "threads", "lanes")
    return {
        "name": package.plan.get("model", {}).get("name", ""),
        "target": package.plan.get("target", ""),
        "quantizer": package.plan.get("quantizer", ""),
        "format": f"{head['major']}.{head['minor']}",
        "architecture": ARCHITECTURES[int(head["architecture"])],
        "features": [name for i, name in enumerate(FEATURES) if int(head["features"]) >> i & 1],
        "pooling": POOLINGS[int(head["pooling"])],
        "labels": list(recorded(package).names),
        "reading": recorded(package).to_json(),
        "full_bits": int(head["full_bits"]),
        "row_type": package.row_type,
        "all_planes": bool(np.all(package.records["bytes"][:, :FULL] > 0)),
        "plans": len(package.plans),
        "gpu": gpu_facts(package),
        **{name: int(head[name]) for name in numbers},
    }


def gpu_facts(package: Package) -> dict[str, Any] | None:
    """What the package runs on a GPU and how; None: nothing."""
    gpu = package.gpu
    if gpu is None:
        return None
    return {
        "name": package.plan.get("gpu", ""),
        "style": gpu.style,
        "storage": gpu.storage,
        "layers": gpu.places.count("gpu"),
        "fallback": gpu.fallback,
    }


def describe(package: Package) -> list[str]:
    """The same in a few lines for people."""
    facts = identity(package)
    width = package.shape.heads_per_slice
    lines = [
        f"{facts['name'] or 'a model'}: {facts['layers']} layers of {facts['slices']} slices"
        f" ({width} head{'s' if width > 1 else ''} and {package.shape.neurons_per_slice} neurons each),"
        f" hidden {facts['hidden']}, up to {facts['max_length']} tokens",
        f"output: {facts['output_features']} numbers"
        + {"tokens": " a token", "first": " from the first token", "mean": ", mean of the tokens"}[facts["pooling"]]
        + (f", {facts['reading']['kind']} {', '.join(facts['labels'])}" if facts["labels"] else ""),
        f"target {facts['target']}: {facts['architecture']} with {', '.join(facts['features']) or 'nothing'};"
        f" {facts['threads']} compute threads, {facts['lanes']} IO lanes; format {facts['format']},"
        f" quantizer {facts['quantizer']}",
        f"shards.bin holds {'all planes' if facts['all_planes'] else 'what its plans read, and no other planes'};"
        f" the word table is {facts['row_type']}",
    ]
    if (gpu := facts["gpu"]) is not None:
        instead = "on the CPU instead" if gpu["fallback"] else "not at all: the CPU would miss the deadline"
        lines.append(
            f"{gpu['layers']} of {facts['layers']} layers run on {gpu['name']}, activations in {gpu['storage']};"
            f" where that fails, {instead}"
        )
    if facts["plans"] > 1:
        lines.append(f"{facts['plans']} plans to switch between; this is plan {package.number}")
    return lines


def file_bytes(package: Package) -> dict[str, int]:
    """Bytes of each file."""
    return {
        "index.bin": int(package.header["index_bytes"]),
        **{name: int(row["bytes"]) for name, row in package.files.items()},
    }


def kind_bytes(package: Package) -> dict[str, int]:
    """Bytes of shards.bin by what they hold, for all records that are stored."""
    weights = sum(n * k for n, k in (package.shape.matrix(name) for name in MATRICES))
    present = package.records["bytes"] > 0
    records = {level: int(np.sum(present[:, level])) for level in range(LEVELS)}
    planes = sum(
        records[level] * weights * planes_in(level, package.nested) // 8 for level in range(FULL) if records[level]
    )
    tables = sum(records[level] * len(MATRICES) * (4 << level) for level in range(FULL))
    full = int(np.sum(package.records["bytes"][:, FULL], dtype=np.int64))
    stored = int(np.sum(package.records["bytes"], dtype=np.int64))
    return {
        "bit planes": planes,
        "tables of code values": tables,
        "outliers": stored - full - planes - tables,
        "full precision": full,
        "padding": int(package.files["shards.bin"]["bytes"]) - stored,
    }


def memory_bytes(package: Package) -> dict[str, int]:
    """Bytes of each region of the arena, and what the claim counts beside it."""
    regions = {name: size for name, (_, size) in package.regions.items()}
    if package.gpu is not None:
        layers, slices = package.bits.shape
        regions["gpu state"] = package.gpu.state_bytes
        regions["gpu copies"] = int(package.files["trunk.bin"]["bytes"]) + codes_bytes(layers, slices)
    return {**regions, "beside": int(package.header["claimed_bytes"]) - sum(regions.values())}


def memory_groups(package: Package) -> dict[str, int]:
    """The same in few words: what a plan decides about, and the rest."""
    names = {"trunk": "trunk", "preload": "preload buffer", "working": "working buffer", "table": "word table"}
    names |= {"gpu state": "activations on the GPU", "gpu copies": "trunk and addresses for the GPU"}
    groups: dict[str, int] = {}
    for region, size in memory_bytes(package).items():
        name = "index, stacks, code" if region == "beside" else names.get(region, "activations, input, output")
        groups[name] = groups.get(name, 0) + size
    return groups


def layer_bytes(package: Package) -> list[tuple[int, int]]:
    """For each layer (bytes held in the preload buffer, bytes read in a run)."""
    resident = int(package.header["resident_extents"])
    sizes = []
    for layer in range(len(package.layers)):
        mine = package.extents["layer"] == layer
        held = int(np.sum(package.extents["bytes"][:resident][mine[:resident]], dtype=np.int64))
        sizes.append((held, int(np.sum(package.extents["bytes"][mine], dtype=np.int64)) - held))
    return sizes


def shard_bytes(package: Package) -> int:
    """Bytes of all records that the plan uses, resident or streamed."""
    return sum(
        int(package.records[layer, level, s]["bytes"])
        for layer, s in np.argwhere(package.bits > 0)
        for level in levels_of(int(package.bits[layer, s]), package.nested)
    )
