"""Measure on this machine what passes of a decoder cost: packages of one block of each kind, run by the engine.

A pass is one token, near the beginning and near the end of the context, since attention takes time by position; or a
chunk of a prompt. Every bitwidth has a package of its own.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.cache.arrays import Note
from stic.compiler.decoding.cut import Cut, cut_decoder
from stic.compiler.decoding.materials import collect_decoder
from stic.compiler.decoding.synthetic import ROWS, RandomDecoder, one_of_each, random_decoder
from stic.compiler.device.measure import cached, write_probe
from stic.compiler.device.runner import HostRunner, Tick
from stic.compiler.options import DecoderOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.package.kernels import generate, kernels_key
from stic.compiler.plan import BlockCost, ComputeCost, IoCost, LayerPlan
from stic.compiler.planner.costs import IO_DERATING, REQUEST_BYTES, Costs, estimate
from stic.runtime.session import Session
from stic.targets.storage import fit
from stic.targets.target import Target

RUNS, CHUNK_RUNS = 40, 5
Times = dict[str, dict[str, dict[str, list[float]]]]  # pass -> bits -> us of each block and of the rest


@dataclass(frozen=True, eq=False)
class PassCosts:
    """What passes of a decoder cost, and what reading does."""

    next: Costs  # of a token at the end of the context
    early: Costs  # of a token at its beginning
    chunk: Costs  # of a chunk of a prompt, in the middle of the context


def pass_costs(
    target: Target, cut: Cut, materials: Materials, options: DecoderOptions, bits: tuple[int, ...], folder: Path,
    tick: Tick, note: Note,
) -> PassCosts:  # fmt: skip
    """Measure here, or take what was measured before by the same kernels on the same machine.

    For another machine than this one, times follow from the facts of the target's file, and are marked as estimates.
    """
    if target.name != "host":
        return estimated(target, materials, bits)
    folder.mkdir(parents=True, exist_ok=True)
    sizes, architecture = materials.sizes, one_of_each(cut.decoder.architecture)
    own = replace(options, context=sizes.max_length)
    probed = cut_decoder(random_decoder(architecture), cut.slices_asked)
    probe = Probe(target, probed, own, sizes.threads, sizes.lanes)
    key = (target, repr(architecture), own, bits, sizes.threads, sizes.lanes)
    here = (*key, kernels_key(materials.kernel_shape, target), folder.stat().st_dev)
    data = cached(__name__, here, lambda: probe.measure(bits, folder, tick), note)
    return costs_of(data, materials, bits)


def estimated(target: Target, materials: Materials, bits: tuple[int, ...]) -> PassCosts:
    """Costs from a target file's facts alone. Raises InputError where the file lacks one."""
    sizes = materials.sizes
    assert sizes.decoder is not None

    def costs(tokens: int) -> Costs:
        every = [
            estimate(target, shape, tokens, sizes.threads, sizes.row_lanes, bits) for shape in materials.store.cuts
        ]
        compute = replace(every[0].compute, blocks=tuple(one.compute.layer for one in every), head_us=0.0)
        return replace(every[0], compute=compute)

    return PassCosts(costs(1), costs(1), costs(sizes.decoder.chunk))


@dataclass(frozen=True, eq=False)
class Probe:
    """What is measured: a decoder of one block of each kind."""

    target: Target
    cut: Cut
    options: DecoderOptions
    threads: int
    lanes: int

    def measure(self, bits: tuple[int, ...], folder: Path, tick: Tick) -> dict[str, Any]:
        """Return bare reads of the storage of `folder` and the times of passes, as JSON."""
        quantized = RandomDecoder(self.cut)
        full = max(bits) if max(bits) > 8 else 0
        materials = collect_decoder(quantized, full, self.options, self.threads, self.lanes, "int8")
        times: Times = {"next": {}, "early": {}, "chunk": {}}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".stic-probe-") as name:
            kernels = Path(name) / "kernels.so"
            generate(materials.kernel_shape, self.target, kernels)
            for done, b in enumerate(bits):
                tick(done, len(bits) + 1)
                package = Path(name) / f"b{b}"
                layers = tuple(LayerPlan((b,) * n, (b,) * n) for n in materials.store.slices)
                write_probe(materials, self.target, kernels, package, layers, False)
                for which, found in _passes(package).items():
                    times[which][str(b)] = found
            tick(len(bits), len(bits) + 1)
            bare = HostRunner(folder).storage([self.lanes])
        return {"io": {**bare, **fit(bare["points"], self.lanes)}, "times": times}


def _passes(package: Path) -> dict[str, dict[str, list[float]]]:
    """Run passes; microseconds of each block (names "0", "1", "2") and of the rest, by kind of pass."""
    rng = np.random.default_rng(0)
    with Session(package) as session:
        context, chunk = session.info.max_length, session.info.chunk

        def extended(count: int) -> None:
            session.extend(rng.integers(0, ROWS, count))

        def timed(count: int, runs: int) -> dict[str, list[float]]:
            at, found = session.position, dict[str, list[float]]()
            for number in range(runs + 2):
                extended(count)
                if number >= 2:
                    for name, us in _spans(session).items():
                        found.setdefault(name, []).append(us)
                session.rewind(at)
            return found

        early = timed(1, RUNS)
        while session.position + 2 * chunk <= context // 2:
            extended(chunk)
        chunks = timed(min(chunk, context - session.position), CHUNK_RUNS)
        while session.position < context - 1:
            extended(min(chunk, context - 1 - session.position))
        return {"early": early, "chunk": chunks, "next": timed(1, RUNS)}


def _spans(session: Session) -> dict[str, float]:
    """Microseconds of compute of the last pass, by block; "rest": of the pass, outside of blocks and stalls."""
    found: dict[str, float] = {}
    stalls = 0.0
    for event in session.trace():
        if event.track == -1:
            us = (event.end_ns - event.begin_ns) / 1e3
            if event.name == "stall":
                stalls += us
            elif event.layer >= 0:
                found[str(event.layer)] = found.get(str(event.layer), 0.0) + us
    return {**found, "rest": max(0.0, session.stats().run_us - stalls - sum(found.values()))}


def costs_of(data: Mapping[str, Any], materials: Materials, bits: tuple[int, ...]) -> PassCosts:
    """Costs of the model's passes from what a probe of one block of each kind took."""
    kinds = ("attention", "feed_forward", "vocabulary")
    io = data["io"]
    reads = IoCost(io["request_us"], io["bytes_per_s"] * IO_DERATING, REQUEST_BYTES, io["row_us"])

    def costs(which: str) -> Costs:
        times = data["times"][which]
        blocks = []
        for shape in materials.store.cuts:
            name = str(kinds.index(shape.kind))
            slices = {b: statistics.median(times[str(b)].get(name, [0.0])) / shape.slices for b in bits}
            blocks.append(BlockCost(0.0, slices))
        rest = statistics.median(us for b in bits for us in times[str(b)]["rest"])
        return Costs(reads, ComputeCost(tuple(blocks), 0.0, 0.0, rest), True)

    return PassCosts(costs("next"), costs("early"), costs("chunk"))
