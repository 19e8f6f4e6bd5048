"""What a decoder's package is made of: where its embedding rows are, and what they take."""

from dataclasses import replace
from pathlib import Path

import pytest

from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.gains import worthless
from stic.compiler.decoding.materials import collect_decoder
from stic.compiler.decoding.measure import estimated
from stic.compiler.decoding.quantize import QuantizedDecoder
from stic.compiler.decoding.stages import pose
from stic.compiler.decoding.synthetic import random_decoder
from stic.compiler.options import BudgetOptions, DecoderOptions, ShardOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.plan import Problem
from stic.runtime.format import BLOCK
from stic.runtime.layout import row_bytes, staging_bytes
from stic.targets.target import load
from tests.runtime.decoder_cases import ARCHITECTURES, CONTEXT

LLAMA = ARCHITECTURES["llama"]


def made(row_type: str, folder: Path) -> tuple[Materials, Problem]:
    quantized = QuantizedDecoder(cut_decoder(random_decoder(LLAMA)), (4,), (4,), folder)
    materials = collect_decoder(quantized, 0, DecoderOptions(context=CONTEXT, chunk=16), 2, 2, row_type)
    costs = estimated(load("raspberry-pi-4"), materials, (4,))
    return materials, pose(
        materials, worthless(quantized, (4,)), costs, BudgetOptions(), 0.0, DecoderOptions(chunk=16), None
    )


@pytest.mark.parametrize("row_type", ["int8", "float16"])
def test_rows_of_their_own_lie_close_together(row_type: str, tmp_path: Path) -> None:
    materials, problem = made(row_type, tmp_path)
    size = row_bytes(LLAMA.hidden, row_type)
    assert materials.sizes.row_stride == -(-size // 8) * 8
    assert len(materials.embeddings) == -(-LLAMA.vocabulary * materials.sizes.row_stride // BLOCK) * BLOCK
    assert problem.row_read_bytes == BLOCK and problem.io.row_us > 0


def test_tied_rows_take_nothing_but_staging(tmp_path: Path) -> None:
    (own, _), (tied, problem) = made("int8", tmp_path), made("tied", tmp_path)
    assert tied.embeddings == b"" and tied.sizes.row_stride == problem.table_bytes == 0
    assert problem.row_read_bytes == problem.io.row_us == 0
    staging = [m.sizes.row_lanes * staging_bytes(LLAMA.hidden, m.sizes.row_stride) for m in (own, tied)]
    assert tied.fixed_bytes() - own.fixed_bytes() <= staging[1] - staging[0]


@pytest.mark.parametrize(
    ("asked", "bits", "tied", "type_"),
    [(None, 4, True, "tied"), (None, 16, True, "tied"), (8, 4, True, "int8"), (16, 4, True, "float16"),
     (None, 4, False, "int8"), (None, 16, False, "float16")],
)  # fmt: skip
def test_who_has_tied_rows(asked: int | None, bits: int, tied: bool, type_: str) -> None:
    assert ShardOptions(embedding_bits=asked).row_type(bits, tied) == type_


def test_a_head_of_other_rows_is_not_the_embedding() -> None:
    head = replace(LLAMA.head, rows=LLAMA.vocabulary - 1)
    assert LLAMA.tied and not replace(LLAMA, blocks=(*LLAMA.blocks[:-1], head)).tied
    assert not replace(LLAMA, blocks=(*LLAMA.blocks[:-1], replace(LLAMA.head, tied=False))).tied
