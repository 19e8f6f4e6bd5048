"""What the stages of a decoder do, where they differ from an encoder's; `stic.compiler.pipeline` puts them in order."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.compiler.decoder.model import Decoder
from stic.compiler.decoding.cut import Cut
from stic.compiler.decoding.gains import Gains, measure_gains, no_gains
from stic.compiler.decoding.materials import collect_decoder
from stic.compiler.decoding.measure import pass_costs
from stic.compiler.decoding.own_text import own_text, writes
from stic.compiler.decoding.quantize import QuantizedDecoder, quantize_decoder
from stic.compiler.device.workload import DEFAULT_LANES
from stic.compiler.forecast import PassCosts
from stic.compiler.importance.examples import BUILT_IN
from stic.compiler.importance.jobs import Workers
from stic.compiler.memory.placement import fixed_bytes, in_context, regions
from stic.compiler.options import BudgetOptions, DecoderOptions, ImportanceOptions, PlannerOptions, TargetOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.plan import Plan, Problem
from stic.compiler.planner import least_memory
from stic.compiler.planner.costs import paced_io
from stic.compiler.quantities import format_bytes
from stic.compiler.stage import Tell
from stic.compiler.stage_cache import solved
from stic.compiler.stages import Decided, Solver
from stic.compiler.stages import decide as decided_for
from stic.compiler.text.tokens import Coder
from stic.runtime.architecture import tensors
from stic.runtime.errors import InfeasibleError, InputError
from stic.runtime.files import write_bytes
from stic.runtime.format import LEVEL_BITS, TILE
from stic.runtime.native import cache_dir
from stic.targets.target import Target

TOKENS = 4096  # of calibration, where no number is asked for
WINDOW, OWN_WINDOW = 512, 256  # tokens of a window of text, and of one that the model writes
_QUANTIZES = (quantize_decoder.__module__,)


@dataclass(frozen=True, eq=False)
class Windows:
    """Calibration text as tokens."""

    ids: NDArray[np.int64]  # (windows, tokens)
    source: str  # for people


def calibrate(decoder: Decoder, options: ImportanceOptions, tell: Tell) -> Windows:
    """Windows of tokens to calibrate on: evenly drawn from the text that was given, or else written by the model.

    A model that is too large to write is calibrated on the built-in sentences; without a tokenizer, on random tokens.
    Raises InputError for a file that cannot be read, or that has no two tokens.
    """
    tokens, most = options.tokens or TOKENS, decoder.architecture.context
    if options.calibration is None and writes(decoder):
        length = min(OWN_WINDOW, most)
        return Windows(_written(decoder, max(1, tokens // length), length, tell), "text that the model wrote")
    length = min(WINDOW, most)
    if decoder.text.tokenizer is None:
        if options.calibration is not None:
            raise InputError(
                f"{options.calibration} cannot be used: {decoder.name} has no tokenizer; put its own beside it"
            )
        tell.note(f"{decoder.name} has no tokenizer: calibration rests on tokens drawn at random")
        shape = (max(1, tokens // length), length)
        return Windows(np.random.default_rng(0).integers(0, decoder.architecture.head.rows, shape), "random tokens")
    if options.calibration is None:
        tell.note(f"{decoder.name} is calibrated on a few sentences; text of its own kind (--calibration) is better")
    text, source = _text(options.calibration)
    ids = Coder(decoder.text, decoder.architecture, decoder.name).encode(text)
    if len(ids) < 2:
        raise InputError(f"{source} has no two tokens to calibrate on: give a longer text")
    length = min(length, len(ids))
    starts = np.linspace(0, len(ids) - length, min(max(1, tokens // length), len(ids) // length)).astype(int)
    return Windows(np.array([ids[start : start + length] for start in starts], np.int64), source)


def _written(decoder: Decoder, windows: int, length: int, tell: Tell) -> NDArray[np.int64]:
    """`own_text`, kept on disk."""
    key = digest(code_of(own_text.__module__, alone=(__name__,)), _weights_digest(decoder), windows, length)
    path = cache_dir() / "own-text" / f"{key}.npy"
    try:
        found: NDArray[np.int64] = np.load(path, allow_pickle=False)
        return found
    except (OSError, ValueError, EOFError):
        ids = own_text(decoder, windows, length, progress=tell.tick)
    buffer = io.BytesIO()
    np.save(buffer, ids)
    write_bytes(path, buffer.getvalue())
    return ids


def _text(path: Path | None) -> tuple[str, str]:
    """Text to calibrate on, and where it is from."""
    if path is None:
        lines = resources.files("stic.compiler").joinpath(BUILT_IN).read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not line.startswith("#")), "built-in sentences"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text to calibrate on: {error}") from error


def quantize(
    cut: Cut, windows: Windows, bits: tuple[int, ...], head_bits: tuple[int, ...], workers: Workers, tell: Tell
) -> QuantizedDecoder:
    """Quantise every block at each of `bits`, the vocabulary at each of `head_bits`.

    What was made from the same weights and text before is taken.
    """
    key = digest(code_of(*_QUANTIZES, alone=(__name__,)), _weights_digest(cut.decoder), cut.shapes, windows.ids)
    folder = cache_dir() / "decoders" / key
    levels, heads = (tuple(b for b in some if b in LEVEL_BITS) for some in (bits, head_bits))
    return quantize_decoder(cut, levels, heads, windows.ids, folder, workers.jobs or os.cpu_count() or 1, tell.tick)


def _weights_digest(decoder: Decoder) -> str:
    """Digest of what a decoder is and of all its tensors, read one after another."""
    parts = [digest(repr(decoder.architecture))]
    for tensor in tensors(decoder.architecture):
        found = decoder.weights.read(tensor.block, tensor.role)
        parts.append(digest(tensor.role, tensor.block, found))
    return digest(*parts)


def gather(
    quantized: QuantizedDecoder,
    decoder: DecoderOptions,
    full_bits: int,
    row_type: str,
    target: Target,
    options: TargetOptions,
) -> Materials:
    """Lay out what every plan shares: the store, the trunk, the embedding rows."""
    threads, lanes = options.threads or target.threads, options.lanes or DEFAULT_LANES
    return collect_decoder(quantized, full_bits, decoder, threads, lanes, row_type)


def cost(
    target: Target, cut: Cut, materials: Materials, options: TargetOptions, decoder: DecoderOptions,
    bits: tuple[int, ...], folder: Path, tell: Tell,
) -> PassCosts:  # fmt: skip
    """Measure, or look up, what passes cost on the target's CPU; `folder` is on the storage to measure.

    Raises InputError where all blocks are wanted on a GPU.
    """
    if options.place == "gpu":
        raise InputError("a decoder is planned on the CPU alone for now: leave out --place gpu")
    if target.gpu is not None:
        tell.note(f"the GPU of target {target.name} stays idle: a decoder is planned on the CPU alone for now")
    found = pass_costs(target, cut, materials, decoder, bits, folder, tell.tick, tell.note)
    if options.storage is None:
        return found
    note = f"storage is taken to deliver {options.storage}"
    return replace(found, io=paced_io(found.io, options.storage), notes=(*found.notes, note))


def pose(
    materials: Materials, gains: Gains, costs: PassCosts, budget: BudgetOptions, margin: float, options: DecoderOptions,
    head_bits: int | None,
) -> Problem:  # fmt: skip
    """Put together all that a planner may know; `head_bits` are those of the vocabulary, if they are decided.

    A run is one token at the end of the context; the prompt is as long as the options say.
    """
    context, chunk = materials.sizes.max_length, min(options.chunk, materials.sizes.max_length)
    return Problem(
        store=materials.store,
        bits=gains.bits,
        gain=gains.gain,
        presence=np.zeros(gains.gain.shape[:2]),
        elastic=False,
        io=replace(costs.io, row_us=0.0) if materials.row_type == "tied" else costs.io,
        compute=costs.next_token(context - 1).compute,
        length=1,
        fixed_bytes=materials.fixed_bytes(1 + len(budget.also)),
        table_bytes=len(materials.embeddings),
        budget=budget.main,
        margin=margin,
        row_type=materials.row_type,
        table_streamed=True,
        held={} if head_bits is None else {materials.store.blocks - 1: head_bits},
        prompt=costs.prompt(options.prompt_of(context), chunk),
    )


def value(
    quantized: QuantizedDecoder, windows: Windows, bits: tuple[int, ...], needed: bool, workers: Workers, tell: Tell
) -> Gains:
    """Measure what each bitwidth of each block is worth, or take what was measured before.

    Where gains are not `needed`, since the planner uses none, nothing is worth anything.
    """
    if not needed:
        return no_gains(quantized, bits)
    key = digest(code_of(measure_gains.__module__, alone=(__name__,)), quantized.folder.name, windows.ids, bits)
    path = cache_dir() / "gains" / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return Gains(bits, file["gain"], file["loss"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = measure_gains(quantized, bits, windows.ids, workers.jobs or os.cpu_count() or 1, tell.tick)
    buffer = io.BytesIO()
    np.savez(buffer, gain=found.gain, loss=found.loss)
    write_bytes(path, buffer.getvalue())
    return found


def decide(
    planner: PlannerOptions, problem: Problem, solver: Solver, materials: Materials, budget: BudgetOptions, tell: Tell
) -> Decided:
    """Decide as for an encoder. Raises InfeasibleError, which says what the context has to do with it."""
    try:
        return decided_for(problem, solver, materials, budget, tell)
    except InfeasibleError as error:
        raise InfeasibleError(f"{error}; {_of_context(problem, materials, budget, planner)}") from error


def _of_context(problem: Problem, materials: Materials, budget: BudgetOptions, planner: PlannerOptions) -> str:
    """What the cache takes, and the largest context at which something would fit the memory."""
    sizes, limit, plans = materials.sizes, budget.main.memory_bytes, 1 + len(budget.also)
    cache_bytes = regions(sizes, 0, 0, 0)[0]["cache"][1]
    said = f"the cache of {sizes.max_length} tokens takes {format_bytes(cache_bytes)}"
    least = None if limit is None else least_memory(problem, planner.name, planner.bits, planner.time_limit_s / 2)
    if limit is None or least is None:
        return said
    weights = least - problem.fixed_bytes
    fitting = [
        context
        for context in range(TILE, sizes.max_length, TILE)
        if fixed_bytes(in_context(sizes, context), materials.store, plans) + weights <= limit
    ]
    if fitting:
        return f"{said}: at any latency a --context of {fitting[-1]} would fit"
    return f"{said}: at no context would it fit" if least > limit else said


def solver(options: PlannerOptions, notes: tuple[str, ...], tell: Tell) -> Solver:
    """Make ready who answers: the planner that was named. `notes` are what there is to say of the costs."""
    effort = (options.time_limit_s, options.gap, cache_dir() / "plans", tell.note)

    def solve(problem: Problem) -> Plan:
        plan = solved(problem, options.name, options.bits, *effort)
        return replace(plan, notes=(*plan.notes, *notes))

    return Solver(solve, None)
