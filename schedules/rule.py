"""Which kernels a target gets: for every kind an ordered tuple of rules, the first that answers wins.

A rule is a function of the target that returns None for "not mine"; the last rule of a tuple takes any target.
Adding an instruction set means adding its rules to the tuples it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from stic.runtime.errors import TargetError
from stic.schedules.cpu.activation import activation
from stic.schedules.cpu.attention import attention
from stic.schedules.cpu.cache import cache_store
from stic.schedules.cpu.cached_attention import cached_attention
from stic.schedules.cpu.decoder_norm import layer_norm, rms_norm
from stic.schedules.cpu.dot import MicroKernel, dot_kernels, dot_portable
from stic.schedules.cpu.dot_avx2 import dot_avx2
from stic.schedules.cpu.dot_avx_vnni import dot_avx_vnni
from stic.schedules.cpu.dot_grouped import dot_grouped, dot_grouped_finish
from stic.schedules.cpu.dot_neon import dot_sdot, dot_smmla, dot_smull
from stic.schedules.cpu.dot_vnni import dot_vnni
from stic.schedules.cpu.embed import embed, embed_f16
from stic.schedules.cpu.embed_plain import embed_plain
from stic.schedules.cpu.gate import add, gate, softcap
from stic.schedules.cpu.matmul import matmul_f16, matmul_f32
from stic.schedules.cpu.norm import add_norm
from stic.schedules.cpu.outlier import bias, outliers
from stic.schedules.cpu.quantize import quantize, quantize_grouped
from stic.schedules.cpu.rope import rope
from stic.schedules.cpu.rows import RowsKernel, rows_finish, rows_kernel, rows_outliers, rows_portable, rows_vnni
from stic.schedules.cpu.rows_avx import rows_avx2, rows_avx_vnni
from stic.schedules.cpu.rows_grouped import rows_grouped, rows_grouped_finish
from stic.schedules.cpu.rows_neon import rows_sdot, rows_smmla, rows_smull
from stic.schedules.cpu.unpack import LEAST_GROUPS, WIDTHS, Decoder, decoder_portable, unpack_kernel
from stic.schedules.cpu.unpack_avx2 import decoder_avx2
from stic.schedules.cpu.unpack_avx512 import decoder_avx512
from stic.schedules.cpu.unpack_gfni import decoder_gfni
from stic.schedules.cpu.unpack_neon import decoder_neon
from stic.schedules.pack import interleave
from stic.schedules.shape import DecoderShape, KernelShape
from stic.schedules.tir import PrimFunc
from stic.schedules.tuning import Tuning, tuning_for
from stic.targets.target import Target

Rule = Callable[[Target, KernelShape], PrimFunc]
DecoderRule = Callable[[Target, DecoderShape], PrimFunc]

DOT: tuple[Callable[[Target], MicroKernel | None], ...] = (
    dot_vnni,
    dot_avx_vnni,
    dot_avx2,
    dot_smmla,
    dot_sdot,
    dot_smull,
    dot_portable,
)
DECODERS: tuple[Callable[[Target, int], Decoder | None], ...] = (
    decoder_gfni,
    decoder_avx512,
    decoder_avx2,
    decoder_neon,
    decoder_portable,
)
ROWS: tuple[Callable[[Target], RowsKernel | None], ...] = (
    rows_vnni,
    rows_avx_vnni,
    rows_avx2,
    rows_smmla,
    rows_sdot,
    rows_smull,
    rows_portable,
)
# Written on vectors of 16 lanes, which LLVM splits: one rule serves every CPU.
EVERY_DECODER: tuple[DecoderRule, ...] = (
    quantize_grouped,
    dot_grouped_finish,
    rows_grouped_finish,
    cache_store,
    cached_attention,
    add,
    bias,
    matmul_f16,
    matmul_f32,
)
EVERY_CPU: tuple[Rule, ...] = (
    embed,
    embed_f16,
    quantize,
    activation,
    outliers,
    rows_outliers,
    matmul_f16,
    matmul_f32,
    bias,
    add_norm,
)
Answer = TypeVar("Answer")


def _first(answers: Iterable[Answer | None]) -> Answer:
    return next(answer for answer in answers if answer is not None)


def decoders_for(target: Target, bit_count: int) -> tuple[Decoder, ...]:
    """The decoders of one loop: those of many groups a step, best first, then the best whose step divides a block's."""
    answers = [answer for answer in (rule(target, bit_count) for rule in DECODERS) if answer is not None]
    last = next(answer for answer in answers if answer.groups <= LEAST_GROUPS)
    return (*answers[: answers.index(last)], last)


def micro_kernel(target: Target) -> MicroKernel:
    """The dot product's micro-kernel of a target, not tuned."""
    return _first(rule(target) for rule in DOT)


def decoder_rules(shape: DecoderShape) -> tuple[DecoderRule, ...]:
    """The kernels on vectors of 16 lanes that a decoder needs."""
    norms: dict[str, DecoderRule] = {"rms": rms_norm, "layer": layer_norm}
    chosen = [*EVERY_DECODER, *(norms[kind] for kind in shape.norms)]
    for needed, rule in (
        (shape.row_type != "tied", embed_plain),
        (True in shape.gated, gate),
        (False in shape.gated, activation),
        (shape.rotary, rope),
        (shape.logits_cap is not None, softcap),
    ):
        if needed:
            chosen.append(rule)
    return tuple(chosen)


def kernels_for(
    target: Target, shape: KernelShape | DecoderShape, tuning: Tuning | None = None
) -> tuple[PrimFunc, ...]:
    """Return every function of kernels.so for this target and model, one PrimFunc a symbol.

    `tuning` defaults to the target's record.
    """
    tuning = tuning or tuning_for(target)
    plain = micro_kernel(target)
    if tuning.tiles is not None and tuning.tiles not in plain.choices:
        raise TargetError(f"the record of {target.name} names register tiles that are none: run `stic tune` again")
    dot, rows, q = plain.tuned(tuning), _first(rule(target) for rule in ROWS), interleave(target)
    if isinstance(shape, DecoderShape):
        functions = [dot_grouped(dot), *(rule(target, shape) for rule in decoder_rules(shape))]
    else:
        functions = [*dot_kernels(dot, shape), *rows_finish(target, shape), attention(target, shape, plain)]
    for width in WIDTHS:
        decoders = decoders_for(target, width)
        functions += [unpack_kernel(width, decoders, tuning.prefetch_bytes)]
        if isinstance(shape, DecoderShape):
            functions.append(rows_grouped(target, width, decoders, rows, q, tuning))
        else:
            functions.append(rows_kernel(width, decoders, rows, q, tuning))
    if isinstance(shape, DecoderShape):
        return tuple(functions)
    return (*functions, *(rule(target, shape) for rule in EVERY_CPU))
