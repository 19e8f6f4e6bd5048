"""Device profiles of decoders: what `stic probe` measured of a decoder's passes, and what it says of another plan.

The profile is that of `stic.compiler.planner.costs`, with a list more:

    "decoders": [{"shapes": [{"kind", "hidden", "slices", ..}, ..], "context", "cache", "threads",
                  "times": {"early" | "late": {tokens of a pass: {bits: {kind of block: us, "rest": us}}}}}, ...]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stic.compiler.cache.arrays import Note
from stic.compiler.decoding.cut import Cut
from stic.compiler.decoding.measure import Probe, costs_of
from stic.compiler.device.disturbance import Watch, disturbed
from stic.compiler.device.runner import HostRunner, Runner, Tick
from stic.compiler.device.workload import DEFAULT_LANES
from stic.compiler.forecast import PassCosts
from stic.compiler.options import DecoderOptions, TargetOptions
from stic.compiler.package.assembly import Materials
from stic.runtime.errors import InputError
from stic.runtime.layout import Shape
from stic.targets.target import Target


def probe_for(cut: Cut, target: Target, options: DecoderOptions, asked: TargetOptions) -> Probe:
    """What is to be measured of a decoder. Raises InputError for a context that it does not have."""
    own = replace(options, context=options.context_of(cut.decoder.architecture.context))
    return Probe.of(target, cut, own, asked.threads or target.threads, asked.lanes or DEFAULT_LANES)


def probe_decoder(
    probe: Probe, bits: tuple[int, ...], folder: Path, tick: Tick, note: Note, runner: Runner | None = None
) -> dict[str, Any]:
    """Measure a decoder's passes here, or on the device of `runner`: a device profile as `stic probe` writes it.

    `note` is told if the device was busy meanwhile.
    """
    watch = Watch() if runner is None else None  # who else works on a device behind a tracker is not known here
    data = probe.measure(bits, folder, tick, runner)
    profile = _profile(probe, data, f"{(runner or HostRunner(folder)).name}, {probe.target.description}")
    if why := disturbed(profile, None if watch is None else watch.others()):
        note(f"while the device was measured {why}: these times may be too long; probe while it does nothing else")
    return profile


def _profile(probe: Probe, data: Mapping[str, Any], device: str) -> dict[str, Any]:
    entry = {
        "shapes": [asdict(shape) for shape in probe.cut.kinds],
        "context": probe.options.context,
        "cache": probe.options.cache,
        "threads": probe.threads,
        "times": data["times"],
    }
    compute = {"threads": probe.threads, "shapes": []}
    return {"format": 1, "device": device, "io": data["io"], "compute": compute, "decoders": [entry]}


def profile_costs(path: Path, materials: Materials, bits: tuple[int, ...]) -> PassCosts:
    """Costs of a decoder's passes from a profile file.

    A bitwidth that was not measured takes as long as the next larger one, another context changes attention's share,
    and `notes` say so. Raises InputError for a file that is no profile, or has nothing of this decoder.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for entry in data.get("decoders", []) if _fits(entry, materials)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as a device profile: {error!r}; write one with `stic probe`"
        ) from error
    if not entries:
        raise InputError(
            f"{path} says nothing of this decoder's blocks on {materials.sizes.threads} threads: measure them with"
            " `stic probe MODEL`"
        )
    entry, notes = entries[-1], list[str]()
    try:
        times, stands_in = _filled(entry["times"], bits)
        found = costs_of({"io": data["io"], "times": times}, materials, bits)
        context, cache = int(entry["context"]), str(entry["cache"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a damaged device profile ({error!r}): write one with `stic probe`") from error
    if stands_in:
        notes.append(f"bits {', '.join(map(str, stands_in))} were not measured; the next larger ones stand in")
    if context < found.context:
        notes.append(f"attention beyond {context} tokens was not measured; its time grows evenly")
    decoder = materials.sizes.decoder
    if decoder is not None and cache != decoder.cache:
        notes.append(f"attention was measured over a {cache} cache")
    if not data["io"].get("direct", True):
        notes.append("IO was measured through the page cache (no O_DIRECT); real storage may be slower")
    return replace(found.in_context(context, found.context), measured=not notes, notes=tuple(notes))


def _fits(entry: Mapping[str, Any], materials: Materials) -> bool:
    shapes = {Shape(**shape) for shape in entry["shapes"]}
    return set(materials.store.cuts) <= shapes and int(entry["threads"]) == materials.sizes.threads


def _filled(times: Mapping[str, Any], bits: tuple[int, ...]) -> tuple[dict[str, Any], list[int]]:
    """Times at all of `bits`, and those that others stand in for. Raises ValueError for times that are none."""
    missing: set[int] = set()
    found: dict[str, Any] = {"early": {}, "late": {}}
    for end, by_tokens in found.items():
        for tokens, by_bits in times[end].items():
            known = {int(b): {name: float(us) for name, us in parts.items()} for b, parts in by_bits.items()}
            if not known or not all(math.isfinite(us) and us >= 0 for parts in known.values() for us in parts.values()):
                raise ValueError("it holds a negative or infinite time")
            by_tokens[tokens] = {}
            for b in bits:
                if b not in known:
                    missing.add(b)
                larger = [other for other in known if other >= b]
                by_tokens[tokens][str(b)] = known[min(larger) if larger else max(known)]
    if not found["early"] or found["early"].keys() != found["late"].keys():
        raise ValueError("it lacks passes at an end of the context")
    return found, sorted(missing)
