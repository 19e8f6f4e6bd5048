"""What the stages of a decoder do, where they differ from an encoder's; `stic.compiler.pipeline` puts them in order."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.compiler.decoder.forward import run_block
from stic.compiler.decoder.model import Decoder
from stic.compiler.decoding.apart import quantized_apart
from stic.compiler.decoding.cut import Cut, cut_decoder
from stic.compiler.decoding.gain_jobs import Measured
from stic.compiler.decoding.gains import GainSettings, measure_gains, worthless
from stic.compiler.decoding.materials import collect_decoder
from stic.compiler.decoding.measure import pass_costs
from stic.compiler.decoding.mixtures import Block
from stic.compiler.decoding.own_text import own_text, writes
from stic.compiler.decoding.profile import profile_costs
from stic.compiler.decoding.quantize import QuantizedDecoder, quantize_decoder
from stic.compiler.decoding.refine import refine
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.device.workload import DEFAULT_LANES
from stic.compiler.forecast import PassCosts
from stic.compiler.frontend.gate import checked_once
from stic.compiler.importance.examples import BUILT_IN
from stic.compiler.importance.file import load as load_importance
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.measure import GOOD_RHO, Importance
from stic.compiler.inputs import read_decoder_model
from stic.compiler.memory.placement import fixed_bytes, in_context, regions
from stic.compiler.offers import DECODER_BITS
from stic.compiler.options import BudgetOptions, DecoderOptions, ImportanceOptions, PlannerOptions, TargetOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.plan import Plan, Problem
from stic.compiler.planner import least_memory
from stic.compiler.planner.closed_form import objective
from stic.compiler.planner.costs import paced_io
from stic.compiler.quantities import format_bytes
from stic.compiler.quantization.grouped import quantize_grouped
from stic.compiler.quantization.targets import target
from stic.compiler.stage import Tell
from stic.compiler.stage_cache import solved
from stic.compiler.stages import Decided, Solver
from stic.compiler.stages import decide as decided_for
from stic.compiler.text.template import ChatTemplate
from stic.compiler.text.tokens import Coder
from stic.runtime.architecture import tensors
from stic.runtime.errors import InfeasibleError, InputError
from stic.runtime.files import write_bytes
from stic.runtime.format import LEVEL_BITS, TILE, CacheType
from stic.runtime.native import cache_dir
from stic.targets.target import Target

TOKENS = 4096  # of calibration, where no number is asked for
WINDOW, OWN_WINDOW = 512, 256  # tokens of a window of text, and of one that the model writes
HELD, HELD_TOKENS = 2, 128  # windows that gains are measured on, and tokens of each
# What decides codes, with all that it imports; and what leads there, whose imports decide nothing.
_QUANTIZES = tuple(f.__module__ for f in (quantize_grouped, target, stacks_of, cut_decoder, run_block))
_AROUND = tuple(f.__module__ for f in (quantize_decoder, quantized_apart, refine, Block))


@dataclass(frozen=True, eq=False)
class Windows:
    """Calibration text as tokens."""

    ids: NDArray[np.int64]  # (windows, tokens)
    source: str  # for people
    held: NDArray[np.int64] | None = None  # (windows, tokens) that nothing is fitted to; None: the model writes more


def load(path: Path, tell: Tell) -> Decoder:
    """Read what a decoder is, and compare it with its source, once, where something is installed that opens it.

    Raises InputError for files that cannot be read, or a tokenizer that is of another model, UnsupportedModelError for
    what would not be computed as in the source.
    """
    decoder = read_decoder_model(path)
    if decoder.text.tokenizer is not None:
        Coder(decoder.text, decoder.architecture, str(path))
    if decoder.text.template is not None:
        try:
            ChatTemplate(decoder.text, str(path))
        except InputError as error:
            tell.note(f"{error}: a package of it generates, and does not chat")
    checked_once(decoder, cache_dir() / "gate", tell.note)
    return decoder


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
        rows, shape = decoder.architecture.head.rows, (max(1, tokens // length), length)
        held = np.random.default_rng(1).integers(0, rows, (HELD, min(HELD_TOKENS, length)))
        return Windows(np.random.default_rng(0).integers(0, rows, shape), "random tokens", held)
    if options.calibration is None:
        tell.note(f"{decoder.name} is calibrated on a few sentences; text of its own kind (--calibration) is better")
    text, source = _text(options.calibration)
    ids = Coder(decoder.text, decoder.architecture, decoder.name).encode(text)
    if len(ids) < 2:
        raise InputError(f"{source} has no two tokens to calibrate on: give a longer text")
    length = min(length, len(ids))
    starts = np.linspace(0, len(ids) - length, min(max(1, tokens // length), len(ids) // length)).astype(int)
    fitted = np.array([ids[start : start + length] for start in starts], np.int64)
    return Windows(fitted, source, _between(np.array(ids, np.int64), starts, length))


def _between(ids: NDArray[np.int64], starts: NDArray[np.int_], length: int) -> NDArray[np.int64]:
    """Windows of a text from the middle of what lies between, or behind, those that codes are fitted to.

    A text that has no room for them is valued on the last ones that it is fitted to.
    """
    tokens = min(HELD_TOKENS, length)
    ends = np.append(starts[1:], len(ids))
    gaps = [(start + length, end) for start, end in zip(starts, ends, strict=True) if end - start - length >= tokens]
    if not gaps:
        return np.array([ids[start : start + tokens] for start in starts[-HELD:]])
    chosen = np.linspace(0, len(gaps) - 1, min(HELD, len(gaps)) + 2)[1:-1].round().astype(int)
    middles = [sum(gaps[number]) // 2 - tokens // 2 for number in chosen]
    return np.array([ids[start : start + tokens] for start in middles])


def _written(decoder: Decoder, windows: int, length: int, tell: Tell, seed: int = 0) -> NDArray[np.int64]:
    """`own_text`, kept on disk."""
    key = digest(code_of(own_text.__module__, alone=(__name__,)), _weights_digest(decoder), windows, length, seed)
    path = cache_dir() / "own-text" / f"{key}.npy"
    try:
        found: NDArray[np.int64] = np.load(path, allow_pickle=False)
        return found
    except (OSError, ValueError, EOFError):
        ids = own_text(decoder, windows, length, seed, tell.tick)
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


def asked_of_gains(options: ImportanceOptions) -> ImportanceOptions:
    """Return the options, if a decoder can be valued so. Raises InputError for an encoder's methods."""
    if options.method != "curves" or options.objective != "agreement":
        raise InputError(
            "--method sti and --objective task are an encoder's: a decoder is valued by its own words alone"
        )
    return options


def cut(decoder: Decoder, slices: int | None, file: Path | None, bits: tuple[int, ...]) -> Cut:
    """Cut every block into slices.

    Where gains are in a `file` of another model, cut or bits, InputError says so now, before anything takes long.
    """
    found = cut_decoder(decoder, slices)
    if file is not None:
        read_gains(file, found, bits)
    return found


def quantize(
    cut: Cut, windows: Windows, bits: tuple[int, ...], head_bits: tuple[int, ...], workers: Workers, tell: Tell
) -> QuantizedDecoder:
    """Quantise every block at each of `bits`, the vocabulary at each of `head_bits`.

    What was made from the same weights and text before is taken.
    """
    levels, heads = (tuple(b for b in some if b in LEVEL_BITS) for some in (bits, head_bits))
    code = code_of(*_QUANTIZES, alone=_AROUND)
    key = digest(code, _weights_digest(cut.decoder), cut.shapes, windows.ids, len(levels) > 1)
    return quantize_decoder(cut, levels, heads, windows.ids, cache_dir() / "decoders" / key, workers, tell.tick)


@lru_cache(maxsize=1)
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


def choose_cache(
    materials: Materials,
    int8_loss: float,
    with_cache: Callable[[CacheType], Materials],
    posed: Callable[[Materials], Problem],
    solve: Callable[[Problem], Plan],
    gap: float,
    tell: Tell,
) -> Materials:
    """Choose between keys and values in int8, which `materials` has and which lose so much, and in float16.

    Each form's best plan decides. A loss that is a smaller share of what the plan leaves than `gap` counts for nothing.
    """
    narrow = posed(materials)
    most = float(narrow.gain.max(axis=2).sum())
    try:
        reached = objective(solve(narrow).layers, narrow)
    except InfeasibleError:
        return materials
    if int8_loss <= gap * (most - reached):
        tell.note(f"keys and values are int8, which loses {int8_loss:.2g} nats a token")
        return materials
    wider = with_cache("float16")
    wide = posed(wider)
    try:
        better = objective(solve(wide).layers, wide) > reached - int8_loss
    except InfeasibleError:
        better = False
    tell.note(f"keys and values are {'float16' if better else 'int8'}: int8 loses {int8_loss:.2g} nats a token")
    return wider if better else materials


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
    assert materials.sizes.decoder is not None
    own = replace(decoder, cache=materials.sizes.decoder.cache)
    if options.profile is not None:
        found = profile_costs(options.profile, materials, bits)
    else:
        found = pass_costs(target, cut, materials, own, bits, folder, tell.tick, tell.note)
    if options.storage is None:
        return found
    note = f"storage is taken to deliver {options.storage}"
    return replace(found, io=paced_io(found.io, options.storage), notes=(*found.notes, note))


def pose(
    materials: Materials, gains: Importance, costs: PassCosts, budget: BudgetOptions, margin: float,
    options: DecoderOptions, head_bits: int | None,
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
        whole=frozenset(range(materials.store.blocks - 1)),
        prompt=costs.prompt(options.prompt_of(context), chunk),
    )


def value(
    quantized: QuantizedDecoder,
    windows: Windows,
    options: ImportanceOptions,
    bits: tuple[int, ...],
    needed: bool,
    workers: Workers,
    tell: Tell,
) -> Importance:
    """Measure what each bitwidth of each shard is worth, on text that nothing was fitted to, or read what was measured.

    Where gains are not `needed`, since the planner uses none, nothing is worth anything. Raises InputError for a file
    that is of another model, cut or bits.
    """
    if not needed:
        return worthless(quantized, bits)
    cut = quantized.cut
    if options.file is not None:
        found = read_gains(options.file, cut, bits)
        if found.rho is not None and found.rho < GOOD_RHO:
            tell.note(
                f"{options.file}: summed gains order random plans with a rank correlation of {found.rho:.2f} only, so"
                " that another plan may well be better"
            )
        return found
    held = held_out(cut.decoder, windows, tell)
    code = code_of(measure_gains.__module__, alone=(__name__,))
    log = EvaluationLog(cache_dir() / "importance", digest(code, quantized.folder.name, held))
    settings = GainSettings(bits, options.exact, options.checks)
    found = measure_gains(Measured(quantized, held), settings, log, workers, tell.tick)
    return replace(found, calibration=f"{windows.source}: {held.size} tokens", key=_gains_key(cut))


def held_out(decoder: Decoder, windows: Windows, tell: Tell) -> NDArray[np.int64]:
    """Windows (windows, tokens) of the same kind of text that nothing is fitted to."""
    if windows.held is not None:
        return windows.held
    return _written(decoder, HELD, min(HELD_TOKENS, windows.ids.shape[1]), tell, seed=1)


def _gains_key(cut: Cut) -> str:
    """What a file of gains is for."""
    return digest(_weights_digest(cut.decoder), cut.shapes)


def read_gains(path: Path, cut: Cut, bits: tuple[int, ...]) -> Importance:
    """Read gains at the bits on offer. Raises InputError for those of another model or cut, or at other bits.

    Bits that only a head was asked for are worth what a straight line between the file's says.
    """
    found, name = load_importance(path), cut.decoder.name
    if found.key != _gains_key(cut):
        slices = sum(shape.slices for shape in cut.shapes)
        raise InputError(
            f"{path} is not of {name} in {slices} slices, but of another model or cut: run `stic importance` on {name},"
            " with the same --slices"
        )
    if not {*DECODER_BITS} & {*bits} <= {*found.bits}:
        had, offered = (", ".join(map(str, some)) for some in (found.bits, bits))
        raise InputError(f"{path} has {had} bits, but {offered} are on offer: run `stic importance` on {name} again")
    gain = np.apply_along_axis(lambda worth: np.interp(bits, found.bits, worth), 2, found.gain)
    raw = np.full(gain.shape, np.nan)
    for place, b in enumerate(bits):
        if b in found.bits:
            raw[:, :, place] = found.raw[:, :, found.bits.index(b)]
    return replace(found, bits=bits, gain=gain - gain[:, :, :1], raw=raw)


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


def refine_plans(
    materials: Materials, quantized: QuantizedDecoder, windows: Windows, plans: Sequence[Plan], workers: Workers,
    tell: Tell,
) -> Materials:  # fmt: skip
    """Quantise what plans have chosen among drafts."""
    if not quantized.draft:
        return materials
    chosen = [tuple(layer.bits for layer in plan.layers) for plan in plans]
    folder = cache_dir() / "decoders" / digest(quantized.folder.name, chosen)
    return replace(materials, quantized=refine(quantized, chosen, windows.ids, folder, workers, tell.tick))
