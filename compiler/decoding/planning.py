"""The stages of the compiler that turn a decoder into a problem, in their order."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from stic.compiler.decoder.model import Decoder
from stic.compiler.decoding import stages
from stic.compiler.decoding.cache_loss import int8_loss
from stic.compiler.decoding.cut import Cut
from stic.compiler.decoding.quantize import QuantizedDecoder
from stic.compiler.forecast import PassCosts, passes_to_json
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.measure import Importance
from stic.compiler.inputs import read_decoder_model, wanted_target
from stic.compiler.offers import DECODER_BITS
from stic.compiler.options import CompileOptions, DecoderOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.plan import Problem
from stic.compiler.planner import FIXED
from stic.compiler.stage import Made, Stage, Summary, Tell
from stic.compiler.stages import Decided


def with_limits(options: CompileOptions) -> CompileOptions:
    """Options of which the main budget has a decoder's two latencies. Raises InputError where it was given one."""
    return replace(options, budget=replace(options.budget, main=options.decoder.limits(options.budget.main)))


def decoder_planning(options: CompileOptions) -> list[Stage]:
    """The stages from a decoder to a planner that is ready."""
    target, planner = wanted_target(options.target), options.planner
    asked = planner.bits if planner.name in FIXED else None
    head = options.decoder.head_of(asked)
    offered = tuple(sorted({*DECODER_BITS, *(() if head is None else (head,))}))
    layer_bits = offered if asked is None else (asked,)
    head_bits = offered if head is None else (head,)
    importance = stages.asked_of_gains(options.importance)
    file = importance.file if asked is None else None
    bits = tuple(sorted({*layer_bits, *head_bits}))
    full_bits = max((b for b in bits if b > 8), default=0)
    workers = Workers(options.importance.jobs, options.importance.cluster)
    folder = Path.cwd() if options.output is None else options.output.absolute().parent

    def gathered(made: Made, decoder: DecoderOptions) -> Materials:
        row_type = options.shards.row_type(planner.bits, made[Decoder].architecture.tied)
        return stages.gather(made[QuantizedDecoder], decoder, full_bits, row_type, target, options.target)

    def costs(made: Made, materials: Materials, tell: Tell) -> PassCosts:
        return stages.cost(target, made[Cut], materials, options.target, options.decoder, bits, folder, tell)

    def posed(made: Made, materials: Materials, passes: PassCosts) -> Problem:
        return stages.pose(materials, made[Importance], passes, options.budget, planner.margin, options.decoder, head)

    def chosen(made: Made, tell: Tell) -> Materials:
        if asked is not None or not options.decoder.cache_free:
            return made[Materials]
        held = stages.held_out(made[Decoder], made[stages.Windows], tell)
        passes = costs(made, made[Materials], Tell(tell.tick, lambda _: None))  # the next stage has the notes
        return stages.choose_cache(
            made[Materials],
            int8_loss(made[Decoder], held),
            lambda cache: gathered(made, replace(options.decoder, cache=cache)),
            lambda materials: posed(made, materials, passes),
            stages.solver(planner, (), tell).solve,
            planner.gap,
            tell,
        )

    return [
        Stage(
            "load",
            "read what the decoder is, and where its weights are",
            lambda made, tell: read_decoder_model(options.model.path),
            lambda made: _of_decoder(made[Decoder]),
        ),
        Stage(
            "calibrate",
            "turn calibration text into windows of tokens",
            lambda made, tell: stages.calibrate(made[Decoder], options.importance, tell),
            lambda made: {"source": made[stages.Windows].source, "tokens": made[stages.Windows].ids.size},
        ),
        Stage(
            "shard",
            "cut every block into slices",
            lambda made, tell: stages.cut(made[Decoder], options.shards.slices, file, bits),
            lambda made: {"shapes": [asdict(shape) for shape in made[Cut].kinds]},
        ),
        Stage(
            "quantize",
            "quantise every block, on the stream of those before it",
            lambda made, tell: stages.quantize(made[Cut], made[stages.Windows], layer_bits, head_bits, workers, tell),
            lambda made: {"bits": made[QuantizedDecoder].bits},
        ),
        Stage(
            "gather",
            "lay out what every plan shares: the store, the trunk, the embedding rows",
            lambda made, tell: gathered(made, options.decoder),
            lambda made: {
                "shards_bytes": made[Materials].store.total_bytes,
                "fixed_bytes": made[Materials].fixed_bytes(),
            },
        ),
        Stage(
            "importance",
            "measure what each bitwidth of each shard is worth",
            lambda made, tell: stages.value(
                made[QuantizedDecoder], made[stages.Windows], importance, bits, asked is None, workers, tell
            ),
            lambda made: _of_importance(made[Importance]),
        ),
        Stage(
            "cache",
            "choose the type of keys and values",
            chosen,
            lambda made: {"fixed_bytes": made[Materials].fixed_bytes()},
        ),
        Stage(
            "device",
            "measure what passes cost on the target",
            lambda made, tell: costs(made, made[Materials], tell),
            lambda made: passes_to_json(made[PassCosts]),
        ),
        Stage(
            "problem",
            "put together all that a planner may know",
            lambda made, tell: posed(made, made[Materials], made[PassCosts]),
            lambda made: {"bits": made[Problem].bits},
        ),
        Stage(
            "solver",
            "make ready who decides",
            lambda made, tell: stages.solver(planner, made[PassCosts].notes, tell),
            lambda made: {"planner": planner.name},
        ),
    ]


def decoder_refining(options: CompileOptions) -> list[Stage]:
    """What a decoder's package has before it is written."""
    workers = Workers(options.importance.jobs, options.importance.cluster)
    return [
        Stage(
            "refine",
            "quantise what a plan has, on the stream that it makes",
            lambda made, tell: stages.refine_plans(
                made[Materials], made[QuantizedDecoder], made[stages.Windows], made[Decided].plans, workers, tell
            ),
            lambda made: {"refined": made[Materials].quantized is not made[QuantizedDecoder]},
        )
    ]


def _of_decoder(decoder: Decoder) -> Summary:
    a = decoder.architecture
    sizes = {"hidden": a.hidden, "vocabulary": a.vocabulary, "context": a.context, "blocks": len(a.blocks)}
    return {"name": decoder.name, "family": a.family, **sizes, "tied": a.head.tied}


def _of_importance(importance: Importance) -> Summary:
    return {"rho": importance.rho, "calibration": importance.calibration}
