"""Measure on this machine what passes of a decoder cost: packages of random weights, run by the engine.

A pass is one token, a tile of tokens, or a chunk of a prompt, each at the start of the context and at its end, since
attention takes time by position. Every bitwidth has a package of its own. Weights that are used once a token come from
memory and not from the processor's caches, so a package has as many layers as the model, or FOOTPRINT of them.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.cache.arrays import Note
from stic.compiler.decoding.cut import Cut, cut_decoder
from stic.compiler.decoding.materials import collect_decoder
from stic.compiler.decoding.synthetic import ROWS, RandomDecoder, first_layers, random_decoder
from stic.compiler.device.measure import cached, write_probe
from stic.compiler.device.runner import HostRunner, Runner, Running, Tick
from stic.compiler.forecast import PassCosts
from stic.compiler.options import DecoderOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.package.kernels import generate, kernels_key
from stic.compiler.plan import BlockCost, ComputeCost, IoCost, LayerPlan
from stic.compiler.planner.costs import IO_DERATING, REQUEST_BYTES, Costs, estimate
from stic.runtime.architecture import Attention
from stic.runtime.format import TILE
from stic.runtime.layout import Shape
from stic.targets.storage import fit
from stic.targets.target import Target

FOOTPRINT = 128 << 20  # bytes of layers at 4 bits, far beyond what a processor's caches hold
RUNS, CHUNK_RUNS = 15, 3
Times = dict[str, dict[str, dict[str, dict[str, float]]]]  # end -> tokens -> bits -> us of each kind, and of the rest


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
    sizes = materials.sizes
    probe = Probe.of(target, cut, replace(options, context=sizes.max_length), sizes.threads, sizes.lanes)
    own = probe.options
    key = (target, repr(probe.cut.decoder.architecture), own.context, own.chunk, own.cache, bits, *probe.workers)
    here = (*key, kernels_key(materials.kernel_shape, target), folder.stat().st_dev)
    data = cached(__name__, here, lambda: probe.measure(bits, folder, tick), note)
    return costs_of(data, materials, bits)


def layers_within(size: int, cut: Cut) -> int:
    """Layers of a model, each an attention block and what follows it, whose weights at 4 bits take so many bytes."""
    blocks = cut.decoder.architecture.blocks[:-1]
    layers = sum(isinstance(block, Attention) for block in blocks)
    whole = sum(shape.slices * shape.weights for shape in cut.shapes[:-1]) // 2
    return max(1, min(layers, -(-size * layers // whole)))


def estimated(target: Target, materials: Materials, bits: tuple[int, ...]) -> PassCosts:
    """Costs from a target file's facts alone. Raises InputError where the file lacks one."""
    sizes = materials.sizes
    assert sizes.decoder is not None

    def costs(tokens: int, seen: int) -> Costs:
        every = [
            estimate(target, shape, tokens, sizes.threads, sizes.row_lanes, bits, seen=seen)
            for shape in materials.store.cuts
        ]
        compute = replace(every[0].compute, blocks=tuple(one.compute.layer for one in every), head_us=0.0)
        return replace(every[0], compute=compute)

    counts, context = sorted({1, min(TILE, sizes.decoder.chunk), sizes.decoder.chunk}), sizes.max_length
    ends = {n: (costs(n, n).compute, costs(n, context).compute) for n in counts}
    one = costs(1, context)
    return PassCosts(one.io, context, ends, False, one.notes)


@dataclass(frozen=True, eq=False)
class Probe:
    """What is measured: a decoder of random weights."""

    target: Target
    cut: Cut
    options: DecoderOptions
    threads: int
    lanes: int

    @classmethod
    def of(cls, target: Target, cut: Cut, options: DecoderOptions, threads: int, lanes: int) -> Probe:
        """As many layers of a model as FOOTPRINT allows."""
        architecture = first_layers(cut.decoder.architecture, layers_within(FOOTPRINT, cut))
        return cls(target, cut_decoder(random_decoder(architecture), cut.slices_asked), options, threads, lanes)

    @property
    def workers(self) -> tuple[int, int]:
        """Threads and lanes."""
        return self.threads, self.lanes

    def measure(self, bits: tuple[int, ...], folder: Path, tick: Tick, runner: Runner | None = None) -> dict[str, Any]:
        """Return bare reads of the storage of `folder` and the times of passes, as JSON.

        Packages are written in `folder`, and run here, or on the device of `runner`.
        """
        where = runner or HostRunner(folder)
        quantized = RandomDecoder(self.cut)
        full = max(bits) if max(bits) > 8 else 0
        materials = collect_decoder(quantized, full, self.options, self.threads, self.lanes, "int8")
        times: Times = {"early": {}, "late": {}}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".stic-probe-") as name:
            kernels = Path(name) / "kernels.so"
            generate(materials.kernel_shape, self.target, kernels)
            for done, b in enumerate(bits):
                tick(done, len(bits) + 1)
                package = Path(name) / f"b{b}"
                layers = tuple(LayerPlan((b,) * n, (b,) * n) for n in materials.store.slices)
                write_probe(materials, self.target, kernels, package, layers, False)
                for end, passes in _passes(where, package, self.cut.shapes).items():
                    for tokens, found in passes.items():
                        times[end].setdefault(str(tokens), {})[str(b)] = found
                shutil.rmtree(package)
            tick(len(bits), len(bits) + 1)
            bare = where.storage([self.lanes])
        return {"io": {**bare, "lanes": self.lanes, **fit(bare["points"], self.lanes)}, "times": times}


def _passes(where: Runner, package: Path, shapes: tuple[Shape, ...]) -> dict[str, dict[int, dict[str, float]]]:
    """Run passes of a package; microseconds a block of each kind and of the rest, by end of the context and tokens."""
    rng = np.random.default_rng(0)
    with where.session(package) as session:
        context, chunk = session.info.max_length, session.info.chunk
        counts = sorted({1, min(TILE, chunk), chunk})

        def timed(tokens: int) -> dict[str, float]:
            at, found = session.position, dict[str, list[float]]()
            for number in range(1 + (RUNS if tokens < chunk else CHUNK_RUNS)):
                session.extend(rng.integers(0, ROWS, tokens))
                spans = _spans(session, shapes)
                if tokens == 1 and isinstance(where, HostRunner):  # a token is drawn; elsewhere it takes as long to ask
                    began = time.perf_counter_ns()
                    session.sample()
                    spans["rest"] += (time.perf_counter_ns() - began) / 1e3
                for name, us in spans.items() if number else ():
                    found.setdefault(name, []).append(us)
                session.rewind(at)
            return {name: statistics.median(us) for name, us in found.items()}

        early = {tokens: timed(tokens) for tokens in counts}
        late = {}
        for tokens in reversed(counts):
            while session.position < context - tokens:
                session.extend(rng.integers(0, ROWS, min(chunk, context - tokens - session.position)))
            late[tokens] = timed(tokens)
        return {"early": early, "late": late}


def _spans(session: Running, shapes: tuple[Shape, ...]) -> dict[str, float]:
    """Microseconds of compute of the last pass: of a block of each kind, in the mean; "rest": outside of blocks."""
    by_kind: dict[str, list[float]] = {}
    stalls = 0.0
    for event in session.trace():
        if event.track == -1:
            us = (event.end_ns - event.begin_ns) / 1e3
            if event.name == "stall":
                stalls += us
            elif event.layer >= 0:
                by_kind.setdefault(shapes[event.layer].kind, []).append(us)
    busy = sum(sum(some) for some in by_kind.values())
    counted = {kind: sum(shape.kind == kind for shape in shapes) for kind in by_kind}
    found = {kind: sum(some) / counted[kind] for kind, some in by_kind.items()}
    return {**found, "rest": max(0.0, session.stats().run_us - stalls - busy)}


def costs_of(data: Mapping[str, Any], materials: Materials, bits: tuple[int, ...]) -> PassCosts:
    """Costs of the model's passes from what a probe of the same kinds of blocks took."""
    io = data["io"]
    reads = IoCost(io["request_us"], io["bytes_per_s"] * IO_DERATING, REQUEST_BYTES, io["row_us"])

    def compute(times: Mapping[str, Mapping[str, float]]) -> ComputeCost:
        blocks = []
        for shape in materials.store.cuts:
            slices = {b: times[str(b)].get(shape.kind, 0.0) / shape.slices for b in bits}
            blocks.append(BlockCost(0.0, slices))
        rest = statistics.median(times[str(b)]["rest"] for b in bits)
        return ComputeCost(tuple(blocks), 0.0, 0.0, rest)

    early, late = data["times"]["early"], data["times"]["late"]
    ends = {int(tokens): (compute(early[tokens]), compute(late[tokens])) for tokens in early}
    return PassCosts(reads, materials.sizes.max_length, ends, True)
