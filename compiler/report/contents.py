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
from stic.compiler.text.packaged import architecture_of, is_decoder
from stic.runtime.architecture import Attention, Vocabulary
from stic.runtime.errors import PackageError
from stic.runtime.format import CACHES, FEATURES, FULL, MACHINES, POOLINGS
from stic.runtime.gpu_format import codes_bytes
from stic.runtime.layout import levels_of, planes_in
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
    length = 1 if is_decoder(package) else package.max_length  # a decoder is planned for its next token
    strip = predicted(events, length, package.entry.deadline_us or None)
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
    head, model = package.header, package.model
    slices = max(shape.slices for shape in package.shapes)
    return {
        "name": package.plan.get("model", {}).get("name", ""),
        "target": package.plan.get("target", ""),
        "quantizer": package.plan.get("quantizer", ""),
        "format": f"{head['major']}.{head['minor']}",
        "architecture": MACHINES[int(head["machine"])],
        "features": [name for i, name in enumerate(FEATURES) if int(head["features"]) >> i & 1],
        "pooling": POOLINGS[int(model["pooling"])],
        "labels": list(recorded(package).names),
        "reading": recorded(package).to_json(),
        "full_bits": int(head["full_bits"]),
        "row_type": package.row_type,
        "all_planes": all(
            bool(np.all(records["bytes"][:FULL, : shape.slices] > 0))
            for records, shape in zip(package.records, package.shapes, strict=True)
        ),
        "plans": len(package.plans),
        "gpu": gpu_facts(package),
        "hidden": package.hidden,
        "slices": slices,
        "layers": len(package.shapes),
        **{name: int(model[name]) for name in ("vocabulary", "max_length", "output_features")},
        **{name: int(head[name]) for name in ("threads", "lanes")},
        "decoder": decoder_facts(package),
    }


def decoder_facts(package: Package) -> dict[str, Any] | None:
    """What a decoder is and how it keeps its text; None for an encoder."""
    if not is_decoder(package):
        return None
    architecture, text = architecture_of(package), package.plan.get("text", {})
    attention = [block for block in architecture.blocks if isinstance(block, Attention)]
    return {
        "family": architecture.family,
        "vocabulary": architecture.vocabulary,
        "context": package.max_length,
        "trained_context": architecture.context,
        "chunk": int(package.model["chunk"]),
        "kv_type": CACHES[int(package.model["cache"])],
        "kv_bytes": package.regions["cache"][1],
        "heads": sorted({block.heads for block in attention}),
        "key_heads": sorted({block.key_heads for block in attention}),
        "windows": sorted({block.window for block in attention if block.window}),
        "tied": any(block.tied for block in architecture.blocks if isinstance(block, Vocabulary)),
        "stops": list(architecture.stops),
        "tokenizer": package.tokenizer is not None,
        "template": package.template is not None,
        "bos": text.get("bos") if text.get("add_bos") else None,
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
    lines = [
        f"{facts['name'] or 'a model'}: {_blocks(package)}, hidden {facts['hidden']},"
        f" up to {facts['max_length']} tokens",
        *([_output_line(facts)] if facts["decoder"] is None else _decoder_lines(facts["decoder"])),
        f"target {facts['target']}: {facts['architecture']} with {', '.join(facts['features']) or 'nothing'};"
        f" {facts['threads']} compute threads, {facts['lanes']} IO lanes; format {facts['format']},"
        f" quantizer {facts['quantizer']}",
        f"shards.bin holds {'all planes' if facts['all_planes'] else 'what its plans read, and no other planes'};"
        f" the word table is {'the vocabulary' if facts['row_type'] == 'tied' else facts['row_type']}",
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


def _output_line(facts: dict[str, Any]) -> str:
    """What an encoder gives."""
    pooling = {"tokens": " a token", "first": " from the first token", "mean": ", mean of the tokens"}
    labels = f", {facts['reading']['kind']} {', '.join(facts['labels'])}" if facts["labels"] else ""
    return f"output: {facts['output_features']} numbers{pooling[facts['pooling']]}{labels}"


def _decoder_lines(facts: dict[str, Any]) -> list[str]:
    """What a decoder is, and how it keeps its text."""
    heads, keys = (" or ".join(map(str, facts[name])) for name in ("heads", "key_heads"))
    windows = "".join(f", of them some see {window} tokens" for window in facts["windows"])
    parts = [name for name in ("tokenizer", "template") if facts[name]]
    return [
        f"decoder of the family {facts['family']}: {heads} heads, {keys} of keys and values{windows};"
        f" {facts['vocabulary']} tokens, {'tied to' if facts['tied'] else 'apart from'} the word table",
        f"context {facts['context']} tokens of {facts['trained_context']}, {facts['chunk']} computed at once; keys and"
        f" values in {facts['kv_type']}, {format_bytes(facts['kv_bytes'])}",
        f"text: {' and '.join(parts) or 'neither tokenizer nor template'};"
        f" answers end at {', '.join(map(str, facts['stops'])) or 'no token'}",
    ]


def _blocks(package: Package) -> str:
    """What the package's blocks are, and how they are cut."""
    shape, count = package.shapes[0], len(package.shapes)
    if shape.kind != "layer":
        kinds = [one.kind for one in package.shapes]
        return f"{count} blocks, {kinds.count('attention')} of attention and {kinds.count('feed_forward')} feed-forward"
    width = shape.heads_per_slice
    heads = f"{width} head{'s' if width > 1 else ''}"
    return f"{count} layers of {shape.slices} slices ({heads} and {shape.neurons_per_slice} neurons each)"


def file_bytes(package: Package) -> dict[str, int]:
    """Bytes of each file."""
    return {
        "index.bin": int(package.header["index_bytes"]),
        **{name: int(row["bytes"]) for name, row in package.files.items()},
    }


def kind_bytes(package: Package) -> dict[str, int]:
    """Bytes of shards.bin by what they hold, for all records that are stored."""
    planes = tables = 0
    for records, shape in zip(package.records, package.shapes, strict=True):
        for level in range(FULL):
            count = int(np.sum(records["bytes"][level] > 0))
            planes += count * shape.weights * planes_in(level, package.nested) // 8
            tables += count * len(shape.matrices) * (4 << level)
    full = int(np.sum(package.records["bytes"][:, FULL], dtype=np.int64))
    stored = int(np.sum(package.records["bytes"], dtype=np.int64))
    return {
        "bit planes": planes,
        "tables of code values": tables,
        "ratios" if package.header["group"] else "outliers": stored - full - planes - tables,
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
    return {**regions, "beside": package.entry.claimed_bytes - sum(regions.values())}


def memory_groups(package: Package) -> dict[str, int]:
    """The same in few words: what a plan decides about, and the rest."""
    names = {"trunk": "trunk", "preload": "preload buffer", "working": "working buffer", "table": "word table"}
    names |= {"cache": "keys and values"} if is_decoder(package) else {}
    names |= {"gpu state": "activations on the GPU", "gpu copies": "trunk and addresses for the GPU"}
    groups: dict[str, int] = {}
    for region, size in memory_bytes(package).items():
        name = "index, stacks, code" if region == "beside" else names.get(region, "activations, input, output")
        groups[name] = groups.get(name, 0) + size
    return groups


def layer_bytes(package: Package) -> list[tuple[int, int]]:
    """For each layer (bytes held in the preload buffer, bytes read in a run)."""
    resident = package.entry.resident_extents
    sizes = []
    for layer in range(len(package.shapes)):
        mine = package.extents["block"] == layer
        held = int(np.sum(package.extents["bytes"][:resident][mine[:resident]], dtype=np.int64))
        sizes.append((held, int(np.sum(package.extents["bytes"][mine], dtype=np.int64)) - held))
    return sizes


def shard_bytes(package: Package) -> int:
    """Bytes of all records that the plan uses, resident or streamed."""
    return sum(
        int(package.records[block, level, s]["bytes"])
        for block, s in np.argwhere(package.bits > 0)
        for level in levels_of(int(package.bits[block, s]), package.nested)
    )
